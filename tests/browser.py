"A headless Chromium for the tests, driven by its own protocol over a pipe: no package, no port."
import base64, json, os, select, shutil, subprocess, time
from pathlib import Path

import pytest

chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
in_browser = pytest.mark.skipif(chromium is None, reason='no chromium here (Debian: apt-get install chromium)')
options = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --hide-scrollbars '
           '--disable-component-update --disable-sync --force-color-profile=srgb --remote-debugging-pipe').split()
desktop, phone = dict(width=1400, height=900, mobile=False), dict(width=390, height=844, mobile=True)


def spawn(profile):
    "Chromium, and the two ends of the pipe that it reads commands from and writes answers to"
    from fcntl import F_DUPFD, fcntl
    reads, commands = os.pipe()
    answers, writes = os.pipe()
    high = [fcntl(fd, F_DUPFD, 10) for fd in (reads, writes)]
    def as_chromium_expects():
        for fd, target in zip(high, (3, 4)): os.dup2(fd, target)
    process = subprocess.Popen([chromium, *options, f'--user-data-dir={profile}', 'about:blank'], close_fds=False,
                               preexec_fn=as_chromium_expects, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for fd in (reads, writes, *high): os.close(fd)
    return process, commands, answers


class Browser:
    "One page of a headless Chromium; `problems` and `requests` say what the page that is open logged and asked for"
    def __init__(self, profile, timeout=60):
        self.process, self.commands, self.answers = spawn(profile)
        self.timeout, self.buffer, self.n, self.session, self.events = timeout, b'', 0, {}, []
        target = self.send('Target.createTarget', url='about:blank')['targetId']
        self.session = {'sessionId': self.send('Target.attachToTarget', targetId=target, flatten=True)['sessionId']}
        for domain in ('Page', 'Runtime', 'Log', 'Network'): self.send(f'{domain}.enable')

    def __enter__(self): return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)
        for fd in (self.commands, self.answers): os.close(fd)

    def read(self):
        "The next message of the browser"
        end = time.monotonic() + self.timeout
        while b'\0' not in self.buffer:
            if not select.select([self.answers], [], [], max(0, end - time.monotonic()))[0]: raise TimeoutError('the browser is silent')
            if not (data := os.read(self.answers, 1 << 20)): raise EOFError('the browser has ended')
            self.buffer += data
        message, self.buffer = self.buffer.split(b'\0', 1)
        return json.loads(message)

    def until(self, found):
        "Read up to the first message that is `found`, and keep the events"
        while not found(message := self.read()): self.events.append(message)
        return message

    def send(self, method, **params):
        "Give a command and return its result"
        self.n += 1
        os.write(self.commands, json.dumps({'id': self.n, 'method': method, 'params': params, **self.session}).encode() + b'\0')
        answer = self.until(lambda m: m.get('id') == self.n)
        if 'error' in answer: raise RuntimeError(f'{method}: {answer["error"]}')
        return answer['result']

    def open(self, path, view=desktop, dark=False):
        "Open a file and wait until it is loaded and still"
        self.send('Emulation.setDeviceMetricsOverride', deviceScaleFactor=1, **view)
        self.send('Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value='dark' if dark else 'light')])
        self.send('Page.navigate', url='about:blank')
        self.events = []
        failed = self.send('Page.navigate', url=Path(path).as_uri()).get('errorText')
        if failed: raise FileNotFoundError(f'{path}: {failed}')
        while not any(m.get('method') == 'Page.loadEventFired' for m in self.events): self.events.append(self.read())
        self.run('document.fonts.ready.then(() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 50))))')

    def run(self, script):
        "Value of an expression of JavaScript, awaited if it is a promise"
        answer = self.send('Runtime.evaluate', expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        if 'exceptionDetails' in answer: raise RuntimeError(answer['exceptionDetails'])
        return answer['result'].get('value')

    def named(self, *methods): return [m['params'] for m in self.events if m.get('method') in methods]

    @property
    def problems(self):
        "What the console says: uncaught exceptions, errors, warnings, and files that could not be loaded"
        said = [m for m in self.named('Runtime.consoleAPICalled') if m['type'] in ('error', 'warning', 'assert')]
        logged = [m['entry'] for m in self.named('Log.entryAdded') if m['entry']['level'] in ('error', 'warning')]
        return self.named('Runtime.exceptionThrown') + said + logged

    @property
    def requests(self):
        "Addresses asked for that are neither local files nor part of the page"
        urls = [m['request']['url'] for m in self.named('Network.requestWillBeSent')]
        return [u for u in urls if not u.startswith(('file:', 'data:', 'blob:', 'about:'))]

    def screenshot(self, path, tallest=12000):
        "The whole page as a JPEG"
        width, height = self.run('[document.documentElement.clientWidth, document.documentElement.scrollHeight]')
        clip = dict(x=0, y=0, width=width, height=min(height, tallest), scale=1)
        shot = self.send('Page.captureScreenshot', format='jpeg', quality=80, captureBeyondViewport=True, clip=clip)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(base64.b64decode(shot['data']))
