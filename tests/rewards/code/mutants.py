"""Programs with one operator, constant or return changed, and whether that shows: by plain execution, apart from all
that the reward does.

Run as a script: rows of HumanEval as JSON lines on standard input, the number of showing mutants wanted of each as the
argument (0: all there are). Prints a JSON line a row: task_id, the number of mutants made and of those that hang, those
that differ on an input of the test, and those of them that HumanEval's own check, run plainly, takes for right.
"""

import ast
import copy
import json
import os
import random
import resource
import signal
import sys
from collections.abc import Iterator

OTHER = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add,
    ast.Pow: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.BitXor: ast.BitOr,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


def mutants(source: str, function: str, chance: random.Random) -> Iterator[str]:
    """Every program that differs from `source` in one place of `function`, in random order."""
    body = ast.parse(source).body
    start = next(i for i, node in enumerate(body) if isinstance(node, ast.FunctionDef) and node.name == function)
    kinds = (ast.BinOp, ast.BoolOp, ast.AugAssign, ast.Compare, ast.Constant, ast.Return)
    places = [place for place, node in enumerate(ast.walk(body[start])) if isinstance(node, kinds)]
    changes = [(place, way) for place in places for way in range(2)]
    chance.shuffle(changes)
    for place, way in changes:
        tree = ast.parse(source)
        if _change(list(ast.walk(tree.body[start]))[place], way):
            yield ast.unparse(ast.fix_missing_locations(tree))


def _change(node: ast.AST, way: int) -> bool:
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in OTHER and way == 0:
        node.op = OTHER[type(node.op)]()
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in OTHER and way == 0:
        node.ops[0] = OTHER[type(node.ops[0])]()
    elif isinstance(node, ast.Constant) and type(node.value) is bool and way == 0:
        node.value = not node.value
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        node.value += 1 if way == 0 else -1
    elif isinstance(node, ast.Constant) and type(node.value) is str and way == 0:
        node.value += "x"
    elif isinstance(node, ast.Return) and node.value is not None:
        node.value = ast.Constant(None) if way == 0 else ast.List([node.value], ast.Load())
    else:
        return False
    return True


def inputs_and_outputs(row: dict) -> tuple[list, list]:
    """What HumanEval's check asks the reference solution, and its answers."""
    space: dict = {}
    exec(row["prompt"] + row["canonical_solution"] + "\n" + row["test"], space)  # noqa: S102
    asked, answers, function = [], [], space[row["entry_point"]]

    def recorder(*args):
        asked.append(copy.deepcopy(args))
        answers.append(function(*args))
        return copy.deepcopy(answers[-1])

    random.seed(0)
    space["check"](recorder)
    return asked, answers


def in_a_fork(task) -> bool | None:
    """What `task` returns; False where it raises or dies, None where it hangs."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            os.dup2(1, 2)
            signal.alarm(1)
            resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
            os._exit(0 if task() else 1)
        except BaseException:  # noqa: BLE001  a mutant may do anything
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    return None if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM else status == 0


def examine(row: dict, wanted: int) -> dict:
    asked, answers = inputs_and_outputs(row)
    made, hanging, showing, accepted = 0, 0, [], []
    chance = random.Random(row["task_id"])

    def same(program: str) -> bool:
        space: dict = {}
        exec(program, space)  # noqa: S102
        return all(
            space[row["entry_point"]](*copy.deepcopy(args)) == answer
            for args, answer in zip(asked, answers, strict=True)
        )

    def passes(program: str) -> bool:
        space: dict = {}
        exec(program + "\n" + row["test"], space)  # noqa: S102
        space["check"](space[row["entry_point"]])
        return True

    for program in mutants(row["prompt"] + row["canonical_solution"], row["entry_point"], chance):
        if wanted and len(showing) == wanted:
            break
        made += 1
        equal = in_a_fork(lambda program=program: same(program))
        hanging += equal is None
        if equal is False:
            showing.append(program)
            if in_a_fork(lambda program=program: passes(program)):
                accepted.append(program)
    return {"task_id": row["task_id"], "made": made, "hanging": hanging, "showing": showing, "accepted": accepted}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(examine(json.loads(line), int(sys.argv[1]))), flush=True)
