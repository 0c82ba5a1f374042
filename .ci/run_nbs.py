"Run notebooks in place and save their outputs, which the site and README show: `python .ci/run_nbs.py [NAME...]`"
import multiprocessing, sys, time
from pathlib import Path

from execnb.nbio import write_nb
from execnb.shell import CaptureShell
from fastcore.script import Param, call_parse
from fastcore.xtras import working_directory
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.process import NBProcessor


def is_kept(cell, flags):
    "Whether `cell` keeps its stored outputs: prose, a cell under one of the `flags` or `eval: false`, or the final export"
    directives = cell.directives_
    return (cell.cell_type != 'code' or 'nbdev_export(' in cell.source or bool(flags & directives.keys())
            or directives.get('eval:', [''])[0].lower() == 'false')


def drop_warnings(nb):
    "What cells wrote to the error stream names files of this machine"
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.outputs = [o for o in cell.outputs if o.get('name') != 'stderr']


def run_nb(path):
    "Run the notebook at `path` in its folder and save it cleaned; returns the seconds it took, None if a cell failed"
    cfg, start = get_config(), time.time()
    flags = set(cfg.tst_flags.split())
    shell, nb = CaptureShell(path), NBProcessor(path, rm_directives=False).nb
    for cell in nb.cells:
        if not is_kept(cell, flags): cell.outputs = []
    try:
        with working_directory(path.parent): shell.run_all(nb, exc_stop=True, preproc=lambda cell: is_kept(cell, flags))
    except Exception: return print(shell.prettytb(fname=path), file=sys.stderr)
    drop_warnings(nb)
    clean_nb(nb, clean_ids=cfg.clean_ids)
    write_nb(nb, path)
    return time.time() - start


def choose(names):
    "The notebooks called `names`, by path, name (`01_model`), number (`01`) or module (`model`); all of them without a name"
    notebooks = [p.absolute() for p in sorted(nbglob(as_path=True))]
    known = {key: p for p in notebooks for key in (p.stem, *p.stem.split('_', 1))}
    if unknown := [n for n in names if Path(n).stem not in known]:
        sys.exit(f'no such notebook: {", ".join(unknown)}; there are {", ".join(p.stem for p in notebooks)}')
    return [known[Path(n).stem] for n in names] or notebooks


@call_parse
def main(
    names:Param('Notebooks, by path, name, number or module (default: all)', str, nargs='*', opt=False)=(),
):
    "Run notebooks in place, each in a process of its own, and save their outputs; one that fails is left as it was"
    failed = 0
    with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
        for path in choose(names):
            seconds = pool.apply(run_nb, (path,))
            failed += seconds is None
            print(path.name, 'failed' if seconds is None else f'{seconds:.0f} secs', sep=': ', flush=True)
    sys.exit(bool(failed))
