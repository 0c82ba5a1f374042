"Write README.md from nbs/index.ipynb without Quarto: `python .ci/readme.py [--check]`"
import base64, re, sys

from fastcore.script import call_parse
from nbdev.config import get_config
from nbdev.process import NBProcessor

code_or_link = re.compile(r"""(?P<code>(?P<ticks>`+).+?(?<!`)(?P=ticks)(?!`))
                          | (?P<start>\]\(|(?:src|href)=")(?!\#|/|[a-z][a-z0-9+.-]*:)(?P<path>[^)"\s]+)""", re.S | re.X)


def relocate(text, folder):
    "Make the relative links in a notebook's Markdown relative to the folder above `folder`"
    return code_or_link.sub(lambda m: m['code'] or f"{m['start']}{folder}/{m['path']}", text)


def fence(text, lang=''):
    "`text` in a fenced block that no fence inside it can close"
    ticks = '`' * max(3, 1 + max(map(len, re.findall('`+', text)), default=0))
    return f'{ticks}{lang}\n{text.rstrip()}\n{ticks}'


def output_md(output, name, folder, images):
    "Markdown for one stored `output` of a cell; a PNG goes into `images` as `name`"
    if output.output_type == 'stream': return fence(''.join(output.text))
    if output.output_type == 'error': raise ValueError(f'{name} is an error, not an output: {output.evalue}')
    data = output.data
    if 'text/markdown' in data: return relocate(''.join(data['text/markdown']).rstrip(), folder)
    if 'image/png' in data:
        images[name] = base64.b64decode(data['image/png'])
        return f'![]({folder}/images/{name})'
    return fence(''.join(data['text/plain']))


def is_off(cell, name): return cell.directives_.get(name + ':', [''])[0].lower() == 'false'


def cell_md(cell, folder, images):
    "The parts of README.md that one `cell` makes"
    if cell.cell_type == 'markdown': return [relocate(cell.source.rstrip(), folder)]
    if cell.cell_type != 'code' or 'hide' in cell.directives_ or is_off(cell, 'include'): return []
    code = ''.join(line for line in cell.source.splitlines(True) if not re.match(r'\s*#\s*\|', line)).strip()
    shown = [] if is_off(cell, 'echo') or 'hide_input' in cell.directives_ else [fence(code, 'python')]
    if is_off(cell, 'output') or 'hide_output' in cell.directives_: return shown
    return shown + [output_md(o, f'index-{cell.id}-{n}.png', folder, images) for n, o in enumerate(cell.outputs)]


def render(index, folder):
    "README.md for the notebook `index` in `folder`, and the images that it shows, by file name"
    images = {}
    cells = NBProcessor(index).nb.cells
    parts = (part for cell in cells for part in cell_md(cell, folder, images) if part)
    return '\n\n'.join(parts) + '\n', images


@call_parse
def main(
    check:bool=False, # Write nothing; exit 1 when README.md or one of its images is not what index.ipynb gives
):
    "Write README.md and the images it shows from nbs/index.ipynb"
    cfg = get_config()
    folder = cfg.nbs_path/'images'
    text, images = render(cfg.nbs_path/cfg.readme_nb, cfg.nbs_path.name)
    wanted = {cfg.config_path/'README.md': text.encode(), **{folder/name: data for name, data in images.items()}}
    stale = [p for p in folder.glob('index-*.png') if p not in wanted]
    changed = [p for p, data in wanted.items() if not p.exists() or p.read_bytes() != data]
    if check and (stale or changed):
        sys.exit('not what nbs/index.ipynb gives (run `make readme`): ' + ', '.join(str(p) for p in changed + stale))
    for p in stale: p.unlink()
    for p in changed:
        p.parent.mkdir(exist_ok=True)
        p.write_bytes(wanted[p])
