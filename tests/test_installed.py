"""What is installed: versions that agree, and a package of our name that is not ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import caffeio
import kernels
import pipeline
from pipeline.installed import check_kernels
from pipeline.run import main


def test_the_packages_have_one_version(capsys):
    assert kernels.__version__ == caffeio.__version__ == pipeline.__version__
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"caffe-quant {pipeline.__version__}\n"


def test_our_own_kernels_are_known():
    check_kernels()


@pytest.mark.parametrize("content", ['"""Another project."""\n', None])
def test_kernels_of_another_project_are_an_error_that_says_what_to_do(tmp_path: Path, content):
    """As it is after installing the other package, and after uninstalling it again."""
    (tmp_path / "kernels").mkdir()
    if content is not None:
        (tmp_path / "kernels" / "__init__.py").write_text(content)
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"
    )
    if content is None:
        code += f"sys.path.remove({str(ROOT)!r}); sys.path.append({str(tmp_path / 'rest')!r})\n"
        (tmp_path / "rest").mkdir()
        (tmp_path / "rest" / "pipeline").symlink_to(ROOT / "pipeline")
    run = "from pipeline.run import main; sys.exit(main(['config.toml']))"
    use = "import pipeline; pipeline.FloatNet"
    command, library = (
        subprocess.run(
            [sys.executable, "-P", "-c", code + what], cwd=tmp_path, capture_output=True, text=True
        )
        for what in (run, use)
    )
    assert command.returncode == 1, command.stderr
    assert len(command.stderr.splitlines()) == 1
    for result in (command, library):
        assert "pip uninstall kernels" in result.stderr
        assert "virtual environment" in result.stderr
    assert "ImportError" in library.stderr
