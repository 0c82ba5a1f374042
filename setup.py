from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
def lines(key): return cfg[key].strip().splitlines()
metrics = lines('metrics_requirements')
train = metrics + lines('train_requirements')

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
    license='Apache-2.0', license_files=['LICENSE'],
    classifiers=['Development Status :: 3 - Alpha', f"Intended Audience :: {cfg['audience']}",
                 f"Natural Language :: {cfg['language']}", 'Programming Language :: Python :: 3'],
    packages=find_packages(include=[cfg['lib_path'], cfg['lib_path'] + '.*']), package_data={cfg['lib_path']: ['py.typed']},
    python_requires=f">={cfg['min_python']}",
    install_requires=lines('requirements'), extras_require=dict(metrics=metrics, train=train, dev=train + lines('dev_requirements')),
    entry_points=dict(console_scripts=lines('console_scripts'), nbdev=[f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]),
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
)
