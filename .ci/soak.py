"Short runs with random options, one after another in one process: memory stays flat and no file stays open: `python .ci/soak.py --minutes 60`"
import gc, io, os, shutil, sys, tempfile, time, warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import median

os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'] = '16'  # else kernels of 1,024 shapes are kept, which looks like a leak for hours

from fastcore.script import call_parse
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from disentangle_nb import results
from disentangle_nb.bench import peak_memory
from disentangle_nb.losses import BASES, REGULARIZERS
from disentangle_nb.overlay import FACTORS
from disentangle_nb.run import disentangle_run
from disentangle_nb.training import give_back_memory, resident_memory

kinds = st.lists(st.lists(st.sampled_from(FACTORS), min_size=1, unique=True).map(sorted).map('-'.join), min_size=1, max_size=3, unique=True).map(','.join)
slices = st.sampled_from(['2', '3', '4', '4,8', '2,4,6'])
options = st.fixed_dictionaries(dict(
    kinds=kinds, same=st.sampled_from(['class', 'instance']), reg=st.sampled_from(sorted(REGULARIZERS)), base=st.sampled_from(sorted(BASES)),
    lam=st.floats(0, 10), warmup=st.integers(0, 5), start=st.integers(0, 5), steps=st.integers(2, 8), epoch=st.integers(1, 8), bs=st.integers(6, 24), tau=st.floats(.05, 1),
    slices=slices, dim=st.just(12), hidden=st.sampled_from([0, 16]), heads=st.booleans(), hold=st.booleans(), micro=st.sampled_from([None, 4]), no_final_norm=st.booleans(), size=st.sampled_from([32, 48, 64]),
    crop=st.sampled_from(['centre', 'random']), flip=st.booleans(), contrast=st.floats(0, .5), shift=st.floats(0, .2),
    precision=st.sampled_from(['fp32', 'bf16']), probe_every=st.integers(1, 4), seed=st.integers(0, 99))).map(
    lambda o: o | dict(start=min(max(o['start'], int(o['base'] in ('category', 'inferred'))), o['steps'] - 1))).map(  # a second stage begins within the run
    lambda o: o | dict(warmup=min(o['warmup'], o['steps'] - o['start'])) | (dict(gain=.5, balance=1.) if o['base'] == 'category' else {}))


def memory():
    "Megabytes of this process that are in memory, after what is free was given back where the C library can"
    gc.collect()
    give_back_memory()
    return (resident_memory() or peak_memory('cpu')) / 1e6


def open_files():
    "How many files this process holds open, where the system tells; without the fonts, which matplotlib opens once each"
    folder = Path('/proc/self/fd')
    return sum(not os.path.realpath(f).endswith('.ttf') for f in folder.iterdir()) if folder.exists() else 0


def one_run(config, folder):
    "Run the command, twice: the second time it resumes what is finished; refused options are counted by their message"
    out, said = dict(out=str(folder/'run'), threads=1, quiet=True), io.StringIO()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(said):
            for resume in (False, True): disentangle_run(**config, **out, resume=resume)
    except SystemExit: return said.getvalue().strip().splitlines()[-1]
    finally: shutil.rmtree(folder/'run', ignore_errors=True)


@call_parse
def main(
    minutes:float=60, # How long
    growth:float=.05, # Growth of memory that is allowed from the second quarter of the runs to the last, as a share
):
    "Soak: run until the time is over, then compare memory and open files"
    warnings.simplefilter('ignore')
    results.PARTS.update(train=(400, 1), valid=(200, 2), test=(200, 3))
    start, seen, refused, folder = time.monotonic(), [], [], Path(tempfile.mkdtemp())

    @settings(max_examples=10, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(options)
    def some_runs(config):
        if time.monotonic() - start > 60 * minutes: return
        if message := one_run(config, folder): refused.append(message)
        seen.append((memory(), open_files()))
        print(f'{(time.monotonic() - start) / 60:6.1f} min, run {len(seen)}: {seen[-1][0]:.0f} MB, {seen[-1][1]} files open {message or ""}', flush=True)

    while time.monotonic() - start < 60 * minutes: some_runs()
    shutil.rmtree(folder)
    quarter = max(1, len(seen) // 4)
    early, late = ([m for m, _ in part] for part in (seen[quarter:2*quarter] or seen, seen[-quarter:]))
    grown, files = median(late) / median(early) - 1, {n for _, n in seen[quarter:]}
    print(f'{len(seen)} runs, {len(refused)} refused; memory {median(early):.0f} MB in the second quarter, {median(late):.0f} MB in the last '
          f'({grown:+.1%}); open files {min(files)} to {max(files)}')
    sys.exit(grown > growth or len(files) > 1 or len(refused) > len(seen) / 2)
