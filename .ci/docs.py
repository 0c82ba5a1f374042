"Build the documentation site into `_docs/` without Quarto, and fail on a broken link: `python .ci/docs.py`"
import base64, json, re, shutil, sys
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from fastcore.script import call_parse
from nbdev import processors
from nbdev.config import get_config
from nbdev.serve import proc_nbs
from smalldocs import layout
from smalldocs.config import load
from smalldocs.site import Site, rel

definitions = processors._def_names
processors._def_names = lambda *args: definitions(*args)[::-1] # nbdev inserts what a cell defines one before the other
katex = Path(__file__).parent/'katex'
google_fonts = re.compile(r'@import\s*url\(["\']?https?://fonts\.[^)]*\);?')
fetch_index = 'const r = await fetch(offset + "search.json");\n      index = await r.json();'
load_index = '''index = await new Promise((done, fail) => {
        const script = document.createElement("script");
        Object.assign(script, {src: offset + "search.js", onload: () => done(window.searchIndex), onerror: fail});
        document.head.append(script);
      });'''
events = re.compile(r'(def \w+)\(\n    after_create:NoneType=None,.*?\n\):', re.S)
page_refs = dict(a='href', img='src', script='src', link='href', source='src', iframe='src', video='src', audio='src')


def section_first(text):
    "Anchors of symbols in the HTML `text` that a section before them has taken, so that the symbol's own ends in `-1`"
    symbols = re.findall(r'>source</a></p>\s*<h\d id="([^"]+)"', text)
    return [s[:-2] for s in symbols if s.endswith('-1') and s[:-2] not in symbols]


class NbdevSite(Site):
    "A smalldocs site that honours nbdev's `output-file` and whose links to its own published address are local."
    def __init__(self, project, address): super().__init__(project, quiet=True); self.address = address

    def warn(self, msg):
        "Drop what is read here after all, and broken links, which `check_site` finds in the built pages."
        if 'output-file' not in msg and 'broken link' not in msg: super().warn(msg)

    def read(self, src):
        page = super().read(src)
        if name := page.front.get('output-file'): page.out = page.out.with_name(name)
        return page

    def render_page(self, page):
        "Render a page; a symbol keeps the anchor that links to it name, even where a section is called as it is"
        super().render_page(page)
        swap = {a: b for name in section_first(page.html) for a, b in ((name, name + '-1'), (name + '-1', name))}
        page.html = re.sub(r'((?:data-anchor-)?id=")([^"]+)"', lambda m: f'{m[1]}{swap.get(m[2], m[2])}"', page.html)
        for found in (*page.env.get('headings', ()), *page.env.get('search', ())): found['id'] = swap.get(found['id'], found['id'])

    def find_page(self, target):
        named = next((p for p in self.pages.values() if p.out == target), None)
        return named or super().find_page(target)

    def resolve(self, href, page, record=True):
        local = '/' + href.removeprefix(self.address).lstrip('/') if href.startswith(self.address) else href
        return super().resolve(local, page, record)


def plain_signatures(text, address):
    "Take back the links that nbdev writes into the comments of signatures, where they stay Markdown"
    return re.sub(rf'\[(`[^`\]]+`)\]\({re.escape(address)}[^)\s]*\)', r'\1', text)


def hang_signatures(text):
    "Put each line of a signature in a block of its own, which `styles.css` indents where it wraps"
    def lines(m): return m[1] + ''.join(f'<span class="signature-line">{line}\n</span>' for line in m[2].split('\n')) + m[3]
    return re.sub(r'(<pre class="sourceCode python code-with-copy"><code class="sourceCode python">)(<span class="kw">def</span> .*?)(</code></pre>)',
                  lines, text, flags=re.S)


def true_size(text):
    "Show each figure at the size it was drawn for: it is stored with two pixels for one"
    def sized(m): return f'<img width="{int.from_bytes(base64.b64decode(m[1])[16:20], "big") // 2}" src="data:image/png;base64,{m[1]}'
    return re.sub(r'<img src="data:image/png;base64,([A-Za-z0-9+/]{44})', sized, text)


def search_from_file(site):
    "Let search work from `file://` too, where a page may not fetch JSON but may load a script"
    script = site.out/'site_libs/smalldocs.js'
    before = script.read_text(encoding='utf-8')
    if fetch_index not in before: raise ValueError(f'{script} does not load search.json as the tested smalldocs does')
    script.write_text(before.replace(fetch_index, load_index), encoding='utf-8')
    index = (site.out/'search.json').read_text(encoding='utf-8')
    (site.out/'search.js').write_text(f'window.searchIndex = {index};\n', encoding='utf-8')


def localize(site):
    "Make the pages of a built `site` independent of the network: KaTeX beside them, the theme's fonts the system's"
    shutil.copytree(katex, site.out/'site_libs/katex', dirs_exist_ok=True)
    for page in site.pages.values():
        path, home = site.out/page.out, rel(PurePosixPath('site_libs/katex'), page)
        text = true_size(hang_signatures(plain_signatures(path.read_text(encoding='utf-8'), site.address)))
        path.write_text(text.replace(layout.KATEX, home), encoding='utf-8')
    for css in (site.out/'site_libs/themes').glob('*.css'):
        css.write_text(google_fonts.sub('', css.read_text(encoding='utf-8')), encoding='utf-8')


class PageRefs(HTMLParser):
    "The ids of one HTML page and what it refers to."
    def __init__(self, text):
        super().__init__()
        self.ids, self.refs = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[k] for k in ('id', 'name') if attrs.get(k)}
        if (ref := attrs.get(page_refs.get(tag))) is not None: self.refs.append((tag, ref))


def ref_problem(tag, ref, page, pages):
    "What is wrong with the reference `ref` of a `tag` in the file `page`, or None"
    url = urlsplit(ref)
    if url.scheme == 'data' or (tag == 'a' and url.scheme in ('http', 'https', 'mailto')): return None
    if url.scheme or url.netloc: return f'external request: <{tag}> {ref}'
    target = (page.parent/unquote(url.path)).resolve() if url.path else page
    if target.is_dir(): target = target/'index.html'
    if not target.is_file(): return f'broken link: {ref}'
    anchor = unquote(url.fragment)
    if anchor and target in pages and anchor not in pages[target].ids: return f'no such anchor: {ref}'


def check_site(folder):
    "The broken links and anchors, missing images and external requests of the site in `folder`, a line each"
    folder = Path(folder).resolve()
    pages = {p: PageRefs(p.read_text(encoding='utf-8')) for p in sorted(folder.rglob('*.html'))}
    problems = [(page, problem) for page, found in pages.items() for ref in found.refs
                if (problem := ref_problem(*ref, page, pages))]
    problems += [(css, 'external request: ' + url) for css in sorted(folder.rglob('*.css'))
                 for url in re.findall(r'(?:url\(|@import\s+)["\']?((?:https?:)?//[^"\')]+)', css.read_text(encoding='utf-8'))]
    return [f'{page.relative_to(folder)}: {problem}' for page, problem in problems]


def as_terminal(text):
    "What a terminal shows of `text`: a carriage return goes back to the start of the line, which is then written over"
    def shown(line):
        out = ''
        for part in line.split('\r'): out = part + out[len(part):]
        return out.rstrip() if '\r' in line else out
    return '\n'.join(map(shown, text.split('\n')))


def tidy_output(output):
    "Show a stored progress bar as it stands at its end, and a callback without the function for every event that fastai lets it take"
    if output['output_type'] == 'stream': output['text'] = as_terminal(''.join(output['text'])).splitlines(True)
    if md := output.get('data', {}).get('text/markdown'): output['data']['text/markdown'] = events.sub(r'\1():', ''.join(md)).splitlines(True)


def tidy_outputs(folder):
    "Tidy the stored outputs of the notebooks in `folder`"
    for path in Path(folder).rglob('*.ipynb'):
        nb = json.loads(path.read_text(encoding='utf-8'))
        for cell in nb['cells']:
            for output in cell.get('outputs', []): tidy_output(output)
        path.write_text(json.dumps(nb, ensure_ascii=False), encoding='utf-8')


def build(out=None):
    "Process the notebooks as nbdev does, build the site into the folder `out` (default: `_docs`), and return it"
    cfg = get_config()
    processed = proc_nbs(n_workers=0, force=True)
    tidy_outputs(processed)
    project = load(processed)
    site = NbdevSite(project, address=f'{cfg.doc_host}{cfg.doc_baseurl}')
    site.out = Path(out or cfg.doc_path).resolve()
    site.build()
    localize(site)
    search_from_file(site)
    return site


@call_parse
def main(
    out:str=None, # Folder of the site (default: `_docs`, as settings.ini says)
):
    "Build the documentation site without Quarto; exit 1 on a broken link or anchor, a missing image or an external request"
    site = build(out)
    problems = site.warnings + check_site(site.out)
    print(*problems, sep='\n', end='\n' if problems else '')
    print(f'site: {len(site.pages)} pages in {site.out}, {len(problems)} problems')
    sys.exit(bool(problems))
