import pytest

from ruyi_rl import execution
from ruyi_rl.config import RunConfig, StageOptions
from tests.recorded_stages import Stages


@pytest.fixture
def stages(monkeypatch):
    fake = Stages()
    monkeypatch.setattr(execution, "import_module", fake.module)
    monkeypatch.setattr(execution, "quiet_libraries", lambda: None)
    return fake


@pytest.fixture
def config(tmp_path):
    def make(stage="grpo", **changes):
        values = {"name": "x", "run_dir": str(tmp_path / "x"), **changes}
        return RunConfig(stage=StageOptions(stage), **values)

    return make
