"A study through submitit, as it would go to a cluster, and one whose process is killed."
import json, os, signal, subprocess, sys, time

import pytest

from disentangle_nb.study import read_records, run_study

tiny = {'name': 'tiny', 'recipe': {'steps': 4, 'bs': 8, 'size': 32, 'epoch': 2, 'threads': 1}, 'grid': [{'reg': 'none'}]}


@pytest.fixture
def table(tmp_path):
    path = tmp_path/'tiny.json'
    path.write_text(json.dumps(tiny))
    return path


def test_submitit_makes_the_same_record(table):
    pytest.importorskip('submitit')
    lines = []
    records = run_study(table, table.parent/'runs', launcher='submitit-local', progress=lines.append)
    assert len(records) == 1 and records == read_records(table.with_suffix('.jsonl'))
    assert lines[0].startswith('[1/1] none_s0')


def test_killed_study_goes_on(table):
    "The command is killed with its run at work; the same command then finishes"
    code = f'from disentangle_nb.study import run_study; run_study({str(table)!r}, {str(table.parent/"runs")!r})'
    first = subprocess.Popen([sys.executable, '-c', code], start_new_session=True)
    log = table.parent/'runs'/'none_s0'/'config.json'
    deadline = time.time() + 120
    while not log.exists() and time.time() < deadline: time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert log.exists() and read_records(table.with_suffix('.jsonl')) == []
    assert len(run_study(table, table.parent/'runs')) == 1
