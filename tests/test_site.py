"The documentation site: builds without a broken link, needs no network, and works in a browser from `file://`."
import re, shutil, subprocess, sys
from pathlib import Path

import pytest
from docs import check_site

root = Path(__file__).parents[1]
browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
quiet = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync --virtual-time-budget=10000').split()
in_browser = pytest.mark.skipif(browser is None, reason='no chromium here (Debian: apt-get install chromium)')
mathematics = re.compile(r'<span class="math (?:inline|display)">')


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


def pages(folder): return sorted(folder.rglob('*.html'))


def page_name(notebook): return re.sub(r'^\d+[a-z0-9]*_', '', notebook.stem.lower())


def dumped(page, profile):
    "The document that the browser makes of the file `page`, and what it logged"
    command = [browser, *quiet, f'--user-data-dir={profile}', '--enable-logging=stderr', '--dump-dom', page.as_uri()]
    done = subprocess.run(command, text=True, capture_output=True, timeout=120)
    return done.stdout, done.stderr


def test_each_notebook_has_its_page(site):
    notebooks = [p.relative_to(root/'nbs') for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts]
    assert {str(p.parent/(page_name(p) + '.html')) for p in notebooks} == {str(p.relative_to(site)) for p in pages(site)}


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


@in_browser
def test_mathematics_is_rendered(site, tmp_path):
    written = {p: len(mathematics.findall(p.read_text(encoding='utf-8'))) for p in pages(site)}
    assert any(written.values())
    for page in filter(written.get, written):
        dom, log = dumped(page, tmp_path/'profile')
        assert dom.count('class="katex"') >= written[page], page.name
        assert 'katex-error' not in dom, page.name
        assert 'CONSOLE' not in log, log


@in_browser
def test_search_finds_a_regulariser(site, tmp_path):
    typed = '''<script>addEventListener("load", () => {
        const input = document.querySelector(".smalldocs-search input");
        input.value = "HessReg"; input.dispatchEvent(new Event("input")); });</script>'''
    copy = shutil.copytree(site, tmp_path/'site')
    (copy/'index.html').write_text((site/'index.html').read_text(encoding='utf-8') + typed, encoding='utf-8')
    dom, _ = dumped(copy/'index.html', tmp_path/'profile')
    found = re.findall(r'class="search-result" href="([^"]+)"', dom)
    assert any('hessreg' in href.lower() for href in found), found
