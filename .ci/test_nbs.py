"Run every notebook as a test and count those that passed: `python .ci/test_nbs.py`"
import os, re, shutil, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor

from fastcore.script import call_parse
from nbdev.config import get_config


def count_passed(text):
    "How many notebooks passed in the output of `nbdev_test --timing`: one line each"
    return len(re.findall(r'^\S.*\.ipynb: \d+ secs$', text, re.M))


def test_notebook(path):
    "Output of `nbdev_test` on one notebook, in a process and with a torch thread of its own"
    command = [shutil.which('nbdev_test', path=os.path.dirname(sys.executable)), '--path', str(path), '--n_workers', '0', '--timing']
    env = {'OMP_NUM_THREADS': '1', **os.environ}
    run = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(run.stdout, end='', flush=True)
    return run.returncode == 0 and count_passed(run.stdout) == 1


@call_parse
def main(
    n_workers:int=2, # Notebooks that run at a time
):
    "Run `nbdev_test` and fail unless each notebook passed: nbdev itself is content with none"
    folder, start = get_config().nbs_path, time.time()
    found = sorted(p for p in folder.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
    with ThreadPoolExecutor(n_workers) as pool: passed = sum(pool.map(test_notebook, found))
    print(f'notebooks: {passed} passed, {len(found) - passed} failed, of {len(found)} in {time.time() - start:.0f} s', flush=True)
    sys.exit(not found or passed != len(found))
