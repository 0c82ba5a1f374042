"A study through submitit, as it would go to a cluster; one whose process is killed; and failures, with runs that are only pretended."
import json, os, shutil, signal, subprocess, sys, threading, time
from zipfile import BadZipFile

import pytest

import disentangle_nb.study as study
from disentangle_nb.overlay import only_writer
from disentangle_nb.probing import card_from_accuracy
from disentangle_nb.study import make_executor, read_records, run_study

tiny = {'name': 'tiny', 'recipe': {'steps': 4, 'bs': 8, 'size': 32, 'epoch': 2, 'threads': 1}, 'grid': [{'reg': 'none'}]}


@pytest.fixture
def table(tmp_path):
    path = tmp_path/'tiny.json'
    path.write_text(json.dumps(tiny))
    return path


def test_slices_are_one_in_any_writing():
    assert study.normal({'slices': ' 2'}) == study.normal({'slices': 2})
    assert study.normal({'slices': '2, 6'}) == study.normal({'slices': [2, 6]}) == study.normal({'slices': '02,6'}) != study.normal({'slices': '6,2'})


def test_submitit_makes_the_same_record(table):
    pytest.importorskip('submitit')
    lines = []
    records = run_study(table, table.parent/'runs', launcher='submitit-local', progress=lines.append)
    assert len(records) == 1 and records == read_records(table.with_suffix('.jsonl'))
    assert lines[0].startswith('1 run(s) to make, 0 on record') and lines[1].startswith('[1/1] none_s0')


def test_submitit_keeps_to_the_number_of_jobs(tmp_path):
    pytest.importorskip('submitit')
    executor, begun, done_before = make_executor('submitit-local', 1, tmp_path), [], []
    def submit(task):
        done_before.append([job.done() for job in begun])
        begun.append(executor.submit(time.time))
        return begun[-1]
    assert [task for task, _ in study.completed(submit, [0, 1], 1)] == [0, 1]
    assert done_before == [[], [True]]


@pytest.mark.skipif(sys.platform == 'win32', reason='a POSIX system is needed: the command and its runs are killed as one group')
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


@pytest.mark.skipif(sys.platform == 'win32', reason='a POSIX system is needed: on Windows a signal ends the run at once')
def test_stopped_study_stops_its_runs(table):
    "The signal is sent to the command alone; it waits until its run has saved"
    table.write_text(json.dumps(tiny | {'recipe': tiny['recipe'] | {'steps': 100_000}}))
    run = table.parent/'runs'/'none_s0'
    command = subprocess.Popen([sys.executable, '-c', f'from disentangle_nb.study import disentangle_study; disentangle_study({str(table)!r}, out={str(run.parent)!r})'],
                               start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while not list(run.glob('*.pt')) and time.time() < deadline: time.sleep(0.05)
    command.terminate()
    said = command.communicate(timeout=120)[1]
    assert command.returncode == 143 and 'stopped by SIGTERM; the same command goes on' in said
    assert 'stopped by SIGTERM after step' in run.with_suffix('.log').read_text()
    assert list(run.glob('*.pt')) and not (run/'scorecard.json').exists()


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    "A function that writes a study of a grid; its runs take no time, and stronger weights leak less"
    def pretended(run, options):
        leak = 50 / options.get('lam', 1)
        card = card_from_accuracy({'r': {'DC': 90., 'BC': 60.}, 'r_0': {'DC': 90., 'BC': 10. + leak}, 'r_1': {'DC': 10. + leak, 'BC': 60.}}, {'DC': 10., 'BC': 10.}).to_dict()
        return {'method': options['reg'], 'reg': options['reg'], 'lam': options.get('lam', 1), 'seed': options['seed'], 'options': options, 'scorecard': card, 'validation': card}
    for name, fake in (('run_one', lambda *_: .1), ('Run', lambda folder: folder), ('record', pretended)): monkeypatch.setattr(study, name, fake)
    def write(grid):
        path = tmp_path/'pretended.json'
        path.write_text(json.dumps({'name': 'pretended', 'recipe': {}, 'grid': grid}))
        return path
    return write


def done(path): return [(r['reg'], r['lam'], r['seed']) for r in read_records(path.with_suffix('.jsonl'))]


def test_no_weight_is_best_while_one_has_failed(pretend, monkeypatch):
    path = pretend([{'reg': 'none', 'seed': 0}, {'reg': 'hess', 'lam': [1, 10], 'seed': 0}, {'reg': 'hess', 'lam': 'best', 'seed': [0, 1]}])
    def fail(options, *_):
        if options.get('lam') == 10: raise ChildProcessError('killed')
        return .1
    with monkeypatch.context() as m:
        m.setattr(study, 'run_one', fail)
        with pytest.raises(ChildProcessError, match='1 run'): run_study(path, path.parent/'runs')
    assert done(path) == [('hess', 1, 0), ('none', 1, 0)]
    run_study(path, path.parent/'runs')
    assert done(path) == [('hess', 1, 0), ('hess', 10, 0), ('hess', 10, 1), ('none', 1, 0)]


def test_weights_are_chosen_after_all_other_runs(pretend):
    path = pretend([{'reg': 'hess', 'lam': 'best', 'seed': [0, 1]}, {'reg': 'hess', 'lam': [1, 10], 'seed': 0}, {'reg': 'none', 'seed': 0}])
    run_study(path, path.parent/'runs')
    assert done(path) == [('hess', 1, 0), ('hess', 10, 0), ('hess', 10, 1), ('none', 1, 0)]
    assert [r['options']['lam'] for r in read_records(path.with_suffix('.jsonl')) if r['seed'] == 1] == [10]


def test_a_run_that_another_program_is_making_is_waited_for(pretend):
    path, lines = pretend([{'reg': 'none', 'seed': 0}]), []
    with only_writer(path.parent/'runs'/'none_s0'):
        again = threading.Thread(target=run_study, args=(path, path.parent/'runs'), kwargs={'progress': lines.append})
        again.start()
        again.join(.5)
        assert again.is_alive() and done(path) == [] and 'still at work' in lines[-1]
    again.join(60)
    assert done(path) == [('none', 1, 0)]


@pytest.mark.skipif(bool(shutil.which('srun')), reason='there is Slurm here')
def test_without_slurm_its_launcher_is_refused(tmp_path):
    pytest.importorskip('submitit')
    with pytest.raises(ValueError, match='slurm.*srun'): make_executor('slurm', 1, tmp_path)


def test_what_json_lets_pass_is_refused(tmp_path):
    path = tmp_path/'study.json'
    path.write_text(json.dumps(tiny).replace('{"reg": "none"}', '{"lam": 1, "reg": "hess", "lam": 10}'))
    with pytest.raises(ValueError, match="'lam' is there twice"): study.read_study(path)
    path.write_text(json.dumps(tiny), encoding='utf-8-sig')
    assert study.read_study(path) == tiny


def test_a_folder_that_cannot_be_read_ends_no_study(pretend, monkeypatch):
    def read(folder):
        if folder.name == 'none_s1': raise BadZipFile('not a zip file')
    monkeypatch.setattr(study, 'Run', read)
    path, lines = pretend([{'reg': 'none', 'seed': [0, 1, 2]}]), []
    with pytest.raises(ChildProcessError, match='none_s1'): run_study(path, path.parent/'runs', progress=lines.append)
    assert done(path) == [('none', 1, 0), ('none', 1, 2)] and sum('not a zip file' in line for line in lines) == 1


def test_one_command_at_a_time_writes_the_records(pretend, monkeypatch):
    begun, go = threading.Event(), threading.Event()
    monkeypatch.setattr(study, 'run_one', lambda *_: begun.set() or go.wait(60) or 0.)
    path = pretend([{'reg': 'none', 'seed': 0}])
    first = threading.Thread(target=run_study, args=(path, path.parent/'runs'))
    first.start()
    assert begun.wait(60)
    with pytest.raises(BlockingIOError, match='wait for it to end'): run_study(path, path.parent/'elsewhere')
    go.set()
    first.join()
    assert done(path) == [('none', 1, 0)]


def test_where_images_lie_is_no_part_of_a_record(pretend):
    "On another machine the same study has nothing left to do"
    path = pretend([{'reg': 'none', 'seed': 0, 'data': 'mnist_stl10', 'path': '/here'}])
    run_study(path, path.parent/'runs')
    grid = [{'reg': 'none', 'seed': 0, 'data': 'mnist_stl10', 'path': '/there'}]
    again = study.expand(json.loads(path.read_text()) | {'grid': grid})
    assert study.pending(again, read_records(path.with_suffix('.jsonl'))) == []


@pytest.mark.parametrize('change, message', [({'programm': 'mine.py'}, 'has no part programm'), ({'program': 3}, 'is the name of a file, got 3'),
                                             ({'grid': [{'lam': float('nan')}]}, 'lam must be between'), ({'grid': [{'steps': -1}]}, 'steps must be 1 or more, got -1'),
                                             ({'grid': [{'reg': 'hess', 'lam': 'best', 'warmup': 9}]}, 'the weight would never reach'),
                                             ({'grid': [{'digits': ['a/b', 'a-b']}]}, 'would share the folder none_digits=a-b_s0'),
                                             ({'grid': [{'reg': 'hes'}]}, 'unknown regulariser'), ({'grid': [{'base': 'rooted'}]}, 'unknown contrastive loss'),
                                             ({'grid': [{'arch': 'resnet19'}]}, 'unknown encoder'), ({'grid': [{'crop': 'center'}]}, 'unknown crop'), ({'grid': [{'slices': '2;6'}]}, 'slices'),
                                             ({'grid': [{'base': 'routed'}]}, 'do not tell DC, BC apart'), ({'grid': [{'base': 'category', 'slices': '10,10', 'dim': 20}]}, 'needs --start'),
                                             ({'grid': [{'bs': 1}]}, 'too small'), ({'grid': [{'agree': .5}]}, '--agree is for the base category'), ({'grid': [{'precision': 'fp16'}]}, 'precision must be')])
def test_a_study_that_cannot_run_is_refused_before_any_run(change, message):
    with pytest.raises(ValueError, match=message): study.expand(tiny | change)


def test_a_run_of_other_options_is_not_recorded():
    made = study.OPTIONS | {'steps': 6, 'kinds': ['DC-BC'], 'slices': [16, 48], 'digits': '/there', 'bf16': False, 'seconds': 3}
    study.check_made(made, {'steps': 6., 'slices': '16,48', 'digits': 'here', 'threads': 2}, 'folder')
    with pytest.raises(ValueError, match="folder holds a run of other options: steps was 6, now 900, slices was '16,48', now '2'"): study.check_made(made, {'digits': 'here'}, 'folder')
    with pytest.raises(ValueError, match="data was 'embedded', now 'mnist_stl10'"): study.check_made(made, {'data': 'mnist_stl10'}, 'folder')


def test_a_program_may_know_more_names(): assert study.expand(tiny | {'program': 'mine.py', 'grid': [{'reg': 'mine', 'arch': 'patches'}]})
