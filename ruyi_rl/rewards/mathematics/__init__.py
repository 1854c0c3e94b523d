"""Mathematical answers: finding them in a text, writing them one way, and comparing them.

From the outside in: `extraction` (a completion's final answer), `equality` (whether it equals the gold answer) on top
of `notation`, `numbers` and `numerals` (one spelling), `units` and `quantities` (what is counted), `clock`, `words`,
`structure` and `realsets` (what it is made of), `evasion` (what is refused though its value is right), and last
`symbolic` (math-verify and sympy) behind the caps of `cost`.
`parser_check` guards the grammar behind `symbolic`. The way in is `ruyi_rl.rewards.answers.judge`. Importing this
package imports neither sympy nor math-verify.
"""
