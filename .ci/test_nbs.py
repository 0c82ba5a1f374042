"Run every notebook as a test and count those that passed: `python .ci/test_nbs.py`"
import re, shutil, subprocess, sys, time
from pathlib import Path

from fastcore.script import call_parse
from nbdev.config import get_config


def count_passed(text):
    "How many notebooks passed in the output of `nbdev_test --timing`: one line each"
    return len(re.findall(r'^\S.*\.ipynb: \d+ secs$', text, re.M))


def count_failed(text):
    "How many notebooks `nbdev_test` names as failed"
    _, _, listed = text.partition('nbdev Tests Failed On The Following Notebooks:')
    return len(re.findall(r'^\t\S.*\.ipynb$', listed, re.M))


@call_parse
def main(
    n_workers:int=2, # Notebooks that run at a time
):
    "Run `nbdev_test` and fail unless each notebook passed: nbdev itself is content with none"
    folder, start = get_config().nbs_path, time.time()
    found = [p for p in folder.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts]
    command = shutil.which('nbdev_test', path=Path(sys.executable).parent)
    run = subprocess.run([command, '--n_workers', str(n_workers), '--timing'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(run.stdout, end='')
    failed = count_failed(run.stdout)
    passed = len(found) - failed if failed else count_passed(run.stdout)
    print(f'notebooks: {passed} passed, {failed} failed, of {len(found)} in {time.time() - start:.0f} s', flush=True)
    sys.exit(bool(run.returncode) or not found or passed != len(found))
