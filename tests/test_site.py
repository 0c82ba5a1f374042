"The documentation site: builds without a broken link, needs no network, and works in a browser from `file://`."
import importlib, inspect, re, subprocess, sys
from pathlib import Path

import pytest
from browser import desktop, in_browser, phone
from docs import as_terminal, check_site
from fastcore.docments import docments
from nbdev.config import get_config

from disentangle_nb._modidx import d as index

root = Path(__file__).parents[1]
notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
views = {'desktop': (desktop, False), 'phone-dark': (phone, True)}
screens = root/'_screens'


@pytest.fixture(scope='session')
def built(tmp_path_factory):
    "The folder of the site, and how the command that `make docs` runs, run once, ended"
    folder = tmp_path_factory.mktemp('site')/'docs'
    return folder, subprocess.run([sys.executable, '.ci/docs.py', '--out', folder], cwd=root, text=True, capture_output=True)


@pytest.fixture(scope='session')
def site(built):
    folder, done = built
    assert (folder/'index.html').is_file(), done.stdout + done.stderr
    return folder


def pages(folder):
    "The pages made of notebooks: those that no HTML file of `nbs/` was copied to"
    return sorted(p for p in folder.rglob('*.html') if not (root/'nbs'/p.relative_to(folder)).exists())


def page_of(notebook):
    "Path of a notebook's page in the site: without its number"
    return notebook.relative_to(root/'nbs').with_name(re.sub(r'^\d+[a-z0-9]*_', '', notebook.stem.lower()) + '.html')


def test_each_notebook_has_its_page(site):
    assert set(map(page_of, notebooks)) == {p.relative_to(site) for p in pages(site)}


def test_links_resolve_and_nothing_is_requested(built):
    folder, done = built
    assert not check_site(folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pages_have_content(site):
    for page in pages(site):
        main = re.search(r'<main.*</main>', page.read_text(encoding='utf-8'), re.S)[0]
        assert len(re.sub(r'<[^>]+>', '', main).split()) > 20, page.name


def test_sidebar_lists_each_page(site):
    sidebar = re.search(r'<nav id="quarto-sidebar".*?</nav>', (site/'index.html').read_text(encoding='utf-8'), re.S)[0]
    assert {str(p.relative_to(site)) for p in pages(site)} <= set(re.findall(r'href="([^"#]+)"', sidebar))


def test_theme_is_whole(site):
    for css in (site/'site_libs/themes').glob('*.css'):
        assert not re.search(r'@import|googleapis|display=swap', css.read_text(encoding='utf-8'))


broken_pages = [
    ('<a href="no.html">', 'index.html: broken link: no.html'), ('<img src="no.png">', 'index.html: broken link: no.png'),
    ('<a href="index.html#no">', 'index.html: no such anchor: index.html#no'), ('<a href="#no">', 'index.html: no such anchor: #no'),
    ('<script src="https://a.org/b.js">', 'index.html: external request: <script> https://a.org/b.js'),
    ('<img src="//a.org/b.png">', 'index.html: external request: <img> //a.org/b.png'),
    ('<link href="http://a.org/b.css">', 'index.html: external request: <link> http://a.org/b.css')]


@pytest.mark.parametrize('html, problem', broken_pages, ids=lambda s: s[:12])
def test_checker_finds(html, problem, tmp_path):
    (tmp_path/'index.html').write_text(f'<h1 id="top">{html}')
    assert check_site(tmp_path) == [problem]


def test_checker_finds_external_fonts(tmp_path):
    (tmp_path/'a.css').write_text('@import url(https://fonts.example/css?a;b);')
    assert check_site(tmp_path) == ['a.css: external request: https://fonts.example/css?a;b']


def test_checker_passes_what_is_right(tmp_path):
    (tmp_path/'index.html').write_text('<h1 id="top"><a href="#top"><a href="sub/"><a href="https://a.org"><img src="data:image/png;base64,">')
    (tmp_path/'sub').mkdir()
    (tmp_path/'sub/index.html').write_text('<a href="../index.html#top">')
    assert not check_site(tmp_path)


def test_pages_are_listed_for_machines(site):
    "`llms.txt` names a Markdown copy of each page"
    listed = set(re.findall(r'\]\(([^)]+)\)', (site/'llms.txt').read_text(encoding='utf-8')))
    address = f'{get_config().doc_host}{get_config().doc_baseurl}/'
    copies = {href.removeprefix(address) for href in listed}
    assert copies == {str(p.relative_to(site).with_suffix('.llms.md')) for p in pages(site)}
    assert all((site/copy).stat().st_size > 200 for copy in copies)


def test_terminal_output_is_settled(site):
    "A stored progress bar is shown as it stands at its end"
    assert as_terminal('█\r| 10%\r| 100%\r       \rstep loss  \n1 2\r3') == 'step loss\n3 2'
    assert as_terminal('as  is  \n') == 'as  is  \n'
    assert not [p.name for p in pages(site) if '█' in p.read_text(encoding='utf-8')]


def public_symbols():
    "The functions and classes that each module defines and exports, with the page and anchor that nbdev gives them"
    for module, symbols in index['syms'].items():
        loaded = importlib.import_module(module)
        for name in getattr(loaded, '__all__', ()):
            o = getattr(loaded, name)
            if (inspect.isfunction(o) or inspect.isclass(o)) and o.__module__ == module: yield o, *symbols[f'{module}.{name}']


def test_public_symbols_are_shown_with_signature_and_source(site):
    """Below the anchor that links name, or one numbered where two symbols differ in case only. nbdev finds a source by the
    symbol's name alone: where two modules define one name, either file will do."""
    missing, code = [], re.escape(f'{get_config().git_url}/blob/')
    shown = {p.name: re.split(rf'(?=<p><a href="{code}[^"]+"[^>]*>source</a></p>)', p.read_text(encoding='utf-8'))[1:] for p in pages(site)}
    for o, address, _ in public_symbols():
        page, anchor = address.split('#')
        files = '|'.join(re.escape(file) for other, _, file in public_symbols() if other.__name__ == o.__name__)
        start = re.compile(rf'<p><a href="{code}[^/]+/(?:{files})#L\d+"[^>]*>source</a></p>\s*<h\d id="{re.escape(anchor)}(-1)?"')
        found = [part for part in shown[page] if start.match(part) and f'<span class="fu">{o.__name__}</span>' in part[:3000]]
        if not found: missing.append(address)
    assert sum(map(len, shown.values())) > 100
    assert not missing


# Readers and writers of the protocol buffers' wire format, and others whose only parameter is what their name says.
self_explaining = {'check_tau', 'disentangle_metrics', 'Reading', 'whole_blocks', 'masked_crc', 'frame', 'varint',
                   'read_varint', 'wire_fields', 'wire_field', 'read_floats', 'signed', 'read_ints', 'read_feature', 'packed_list', 'one_value',
                   'numbered_records'}


def test_parameters_are_explained():
    from fastai.callback.core import Callback
    bare = {}
    for o, *_ in public_symbols():
        if inspect.isclass(o) and issubclass(o, (Callback, Exception)) and '__init__' not in vars(o): continue
        call = vars(o).get('__init__', o) if inspect.isclass(o) else o # its own options; a base explains what is handed to it
        named = [n for n, p in inspect.signature(call).parameters.items() if n != 'self' and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        said = docments(o)
        if unsaid := [n for n in named if not said.get(n)]: bare[o.__name__] = unsaid
    assert not {name: unsaid for name, unsaid in bare.items() if name not in self_explaining}


@in_browser
@pytest.mark.parametrize('view', views)
@pytest.mark.parametrize('notebook', notebooks, ids=lambda p: p.stem)
def test_page_in_browser(notebook, view, site, browser):
    "Opens from disk without an error or a request, its mathematics rendered, no wider than the window"
    page, (size, dark) = page_of(notebook), views[view]
    browser.open(site/page, size, dark)
    browser.screenshot(screens/f'{page.with_suffix("")}-{view}.jpg')
    assert not browser.problems
    assert not browser.requests
    formulas, rendered, failed = (browser.run(f'document.querySelectorAll("{css}").length') for css in ('.math', '.math .katex', '.katex-error'))
    assert (rendered, failed) == (formulas, 0)
    assert browser.run('document.documentElement.scrollWidth - document.documentElement.clientWidth') <= 0
    assert browser.run('document.documentElement.classList.contains("quarto-dark")') == dark


@in_browser
def test_mathematics_is_found(site, browser):
    "The count of formulas above is not a count of nothing"
    browser.open(site/'infonce.html')
    assert browser.run('document.querySelectorAll(".math").length') > 10
    assert browser.run('document.fonts.check("12px KaTeX_Main")')


@in_browser
def test_every_anchor_leads_somewhere(site, browser):
    "The table of contents of a page scrolls to headings that exist, as the browser sees them"
    browser.open(site/'regularizers.html')
    lost = """[...document.querySelectorAll('a[href^="#"]')].map(a => a.getAttribute('href').slice(1))
              .filter(id => id && !document.getElementById(decodeURIComponent(id)))"""
    assert browser.run(lost) == []
    assert browser.run("""document.querySelectorAll('#TOC a[href^="#"]').length""") > 5


@in_browser
@pytest.mark.parametrize('start', ['index.html', 'regularizers.html'])
def test_search_finds_a_regulariser(start, site, browser):
    browser.open(site/start)
    found = browser.run("""new Promise(done => {
        const input = document.querySelector('.smalldocs-search input');
        input.value = 'HessReg'; input.dispatchEvent(new Event('input'));
        const look = n => { const a = [...document.querySelectorAll('a.search-result')].map(a => a.getAttribute('href'));
                            a.length || !n ? done(a) : setTimeout(look, 50, n - 1); };
        look(1000); })""")
    assert any(href.endswith('regularizers.html#hessreg') for href in found), found


@in_browser
def test_dark_mode_can_be_chosen(site, browser):
    "The switch turns the page dark, and text stays far from its ground"
    colours = """['color', 'backgroundColor'].map(k => getComputedStyle(document.body)[k].match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3)"""
    browser.open(site/'index.html')
    light = browser.run(colours)
    browser.run("document.querySelector('.quarto-color-scheme-toggle').click()")
    dark = browser.run(colours)
    browser.run('localStorage.clear()')
    assert light[1] - light[0] > 100 and dark[0] - dark[1] > 100
