# pyright: standard, reportUnnecessaryTypeIgnoreComment=true, reportUnusedExpression=false
"Calls as users write them, read by pyright and never run (tests/test_types.py). An `ignore` marks what pyright must refuse: without that error it is an error itself."
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from disentangle_nb.bench import make_loss, measure
from disentangle_nb.dependence import cka, hsic, independence_test, seed_agreement, slice_dependence
from disentangle_nb.disentanglement import Factor, as_factors, boosted_trees, mig, read_factor, ridge_probe
from disentangle_nb.findings import findings_table, methods_table, plot_tradeoff
from disentangle_nb.gallery import Embedded, explorer_html, own_slices, retrieval_accuracy, write_explorer, write_gallery
from disentangle_nb.infonce import SliceLoss, info_nce, info_nce_floor, joined, sub_info_nce
from disentangle_nb.leaderboard import leaderboard, leaderboard_rows
from disentangle_nb.losses import (REGULARIZERS, DisentangleLoss, HessReg, HSICReg, InfoMinReg, OrthoReg, SubInfoMax, hess, info_min, make_base,
                                   make_reg, ortho, routes_of, slice_hsic)
from disentangle_nb.metrics import MetricsCard, compare, load_cards, load_embeddings, metrics_card, save_cards
from disentangle_nb.model import SlicedModel, embed, make_encoder, n_features, small_resnet, split_slices
from disentangle_nb.overlay import (Augment, PairStream, Source, compose, draw_pairs, load_checked, load_source, make_grid, pair_dls, sample, shared_factors,
                                    save_checked, seeded, show_images, show_pairs, stream_dls, to_float)
from disentangle_nb.probing import Scorecard, knn_probe, linear_probe, mlp_probe, probe_matrix, scorecard, show_scorecards
from disentangle_nb.regularizers import sum_pairs
from disentangle_nb.released import read_tfrecord, released_pairs, released_stream
from disentangle_nb.results import (Run, embed_parts, judge, plot_losses, plot_maps, plot_neighbours, results_table, validation_probe,
                                    write_json, write_report)
from disentangle_nb.run import disentangle_report, disentangle_run, run
from disentangle_nb.sharing import load_model, model_card, save_hub, write_embeddings
from disentangle_nb.study import card_of, disentangle_study, distance, read_records, recorded, run_study, write_records
from disentangle_nb.table import Table, TableStream, embed_tables, read_table
from disentangle_nb.training import Checkpoint, GradCache, History, disentangle_learner, distribute, last_state, process_group, restore, train


def borrow_a_loss(z0: Tensor, z1: Tensor):
    loss = HessReg(n_slices=2)(z0, z1)
    loss.backward()
    HessReg(n_slices=[2, 6], tau=.2, form='sample')(z0, z1)
    InfoMinReg(n_slices=(4, 4), denominator='cross')(z0, z1).backward()
    OrthoReg(permute=None), OrthoReg(permute='redrawn', seed=1), HSICReg(debiased=True, whiten=True, width=0.5), SubInfoMax(reduction='sum')
    make_reg('hess', n_slices=[2, 6], tau=.2)(z0, z1).backward()
    make_base('whole', tau=.1), make_base(nn.Identity())
    values: list[Tensor] = [info_nce(z0, z1, tau=.2), sub_info_nce(z0, z1, (2, 6)), info_min(z0, z1, 2), ortho(z0, z1, 2, permute='fixed'),
                            ortho(z0, z1, permute=None), hess(z0, z1, [2, 6], form='batch'), slice_hsic(z0, z1, z0.shape[:1])]
    floor: float = info_nce_floor(256, 10)
    info_nce(z0, z1, tau='0.1') # pyright: ignore[reportArgumentType]
    hess(z0, z1, n_slices='2') # pyright: ignore[reportArgumentType]
    hess(z0, z1, n_slices=2.) # pyright: ignore[reportArgumentType]
    hess(z0, z1, slices=2) # pyright: ignore[reportCallIssue]
    return values, floor


def weigh_losses(z0: Tensor, z1: Tensor, kind: Tensor):
    DisentangleLoss()
    DisentangleLoss(HessReg(n_slices=2, tau=.2), lam=1, n_slices=2, tau=.2, warmup=50)
    DisentangleLoss(make_reg('none'), 0.)
    DisentangleLoss(['hess', OrthoReg()], [.1, 2.])
    DisentangleLoss(HSICReg(), lam=5., base='routed', routes=routes_of(['DC', 'BC']).values())(z0, z1, kind).backward()
    DisentangleLoss(base=nn.Identity(), n_slices=[2, 6])
    loss_fn = DisentangleLoss([OrthoReg(), HessReg()], lam=[10., .1])
    loss_fn.step = 3
    loss: Tensor = loss_fn(z0, z1)
    DisentangleLoss(HessReg(), lam='0.1') # pyright: ignore[reportArgumentType]
    DisentangleLoss(HessReg(), base=1) # pyright: ignore[reportArgumentType]
    return loss, {name: value.item() for name, value in loss_fn.parts.items()}, loss_fn.weights()['lam']


class CrossCorrelation(SliceLoss):
    "A regulariser of one's own, as in the tutorial"
    name = 'crosscorr'

    def loss(self, z0, z1):
        with joined(z0, z1) as z: return sum_pairs(lambda a, b: ((a.T @ b) / len(z)).square().mean(), split_slices(z, self.n_slices))


REGULARIZERS['crosscorr'] = CrossCorrelation


class PatchNet(nn.Module):
    "An encoder of one's own"
    def forward(self, x: Tensor) -> Tensor: return x.flatten(1)


def encode(images: Tensor):
    models = [SlicedModel(), SlicedModel('resnet18', dim=64, n_slices=[16, 48]), SlicedModel(PatchNet(), 32, (16, 16), size=32), SlicedModel(small_resnet((16, 32), 8))]
    slices: list[Tensor] = [*split_slices(models[0](to_float(images)), 2), *split_slices(images, [1, 2])]
    z: Tensor = embed(models[0], images, to_float)
    width: int = n_features(make_encoder('small'), size=32)
    torch.save(models[0].state_dict(), 'weights.pt')
    split_slices(z, '2') # pyright: ignore[reportArgumentType]
    SlicedModel(dim='64') # pyright: ignore[reportArgumentType]
    return slices, width


def load_images(folder: Path) -> dict[str, Source]:
    load_source(), load_source('mnist_stl10', path='data'), load_source('mnist_stl10', 'test', folder, scheme='official'), load_source(folder), load_source(str(folder))
    load_source(digits=folder/'digits', backgrounds='backgrounds', crop='random', device='cpu')
    sources = {s: load_source(split=s, size=32, grid=make_grid(32, 28, 1, 2)) for s in ('train', 'valid', 'test')}
    images, factors = sample(sources['train'], 100, seed=1)
    show_images(images[:8], [str(c) for c in factors[:8, 0].tolist()], cols=4)
    stream = PairStream(sources['train'], 'DC-BC', bs=32, augment=Augment(flip=True))
    PairStream(sources['train'], ['DC', 'BC'], 32, same='instance').to('cpu').batch(0)
    first, second = draw_pairs(sources['train'], 'DC-BC', 8, seeded(0, 1))
    pixels: Tensor = compose(sources['train'], torch.cat([first, second]))
    x: Tensor = to_float(pixels, Augment().jitter(len(pixels), seeded(2)))
    show_pairs(stream.batch(0), stream, 4)
    save_checked({'x': x}, 'x.pt'), load_checked(folder/'x.pt')
    load_source(split=1) # pyright: ignore[reportArgumentType]
    sources['train'].digit # pyright: ignore[reportAttributeAccessIssue]
    return sources


def own_images(folder: Path):
    tables = {s: read_table(folder/'factors.csv', s, size=32) for s in ('train', 'valid', 'test')}
    everything: Table = read_table('factors.csv', None, factors=['shape', 'colour'], folder='images')
    stream, held = TableStream(tables['train'], 'shape,colour', bs=32, augment=Augment()), TableStream(everything, ['shape'])
    dls = stream_dls(stream, held, n_batches=25, n_valid=1, device='cpu')
    x0, x1, factors = released_pairs('shards', 'DC-BC', limit=10)
    released_stream(folder, 'DC-BC', bs=64, augment=Augment()).batch(0)
    records = [len(r) for r in read_tfrecord(folder/'shard')]
    return dls, embed_tables(SlicedModel(), tables), x0, x1, factors, records


def fit(sources: dict[str, Source], folder: Path):
    dls = pair_dls(sources['train'], sources['valid'], 'DC-BC', bs=64, n_batches=25, device='cpu')
    pair_dls(sources['train'], sources['valid'], ['DC', 'BC'], augment=None, stop=100)
    dls.show_batch()
    learn = disentangle_learner(dls, SlicedModel(), DisentangleLoss(HessReg(), .1), folder='runs/own', probe=validation_probe(sources, [16, 48]), probe_names=('r DC',),
                                cbs=[GradCache(64)], config={'lam': .1})
    disentangle_learner(dls, SlicedModel(), DisentangleLoss(), lr=1e-2, folder=folder, cbs=[History('runs'), Checkpoint('runs')])
    with learn.no_bar(): rate = learn.lr_find(num_it=60).valley
    learn.lr, learn.path = min(rate, 1e-2), Path('runs')
    restore(learn, last_state('runs/own'))
    train(learn, 100, progress=False)
    z, _ = learn.get_preds()
    learn.show_results(max_n=4)
    learn.export('learner.pkl')
    losses: list[float] = [row['loss'] for row in learn.history.steps]
    with process_group('gloo'): train(distribute(learn, sync_bn=True), 100)
    train(learn, steps='100') # pyright: ignore[reportArgumentType]
    return losses, z, learn.checkpoints[-1], learn.config['lam'], learn.model(z)


def probe(model: nn.Module, sources: dict[str, Source], x: np.ndarray, y: np.ndarray):
    parts = embed_parts(model, sources, {'train': (1500, 1), 'valid': (500, 2), 'test': (1000, 3)})
    card, valid = judge(parts, 2, ('DC', 'BC'))
    judge(parts, [16, 48], shared_factors('DC,BC'), probe='mlp')
    card: Scorecard = scorecard(parts['train'], parts['test'], slices=[16, 48], factor_names=['DC', 'DL', 'BC'], shared=['DC'], valid=parts["valid"]).with_baseline(card)
    scorecard((x, y), (torch.tensor(x), torch.tensor(y)), factor_names=('machine', 'fault'), shared=('machine', 'fault'), probe='knn')
    probe_matrix((x, y), (x, y), slices=(16, 48), probe=knn_probe)
    accuracy: float = linear_probe(x, y, l2=1e-3).accuracy(x, y) + mlp_probe(x, y, bs=64).accuracy(x, y) + card.R1
    if card.R3 is not None: accuracy -= card.R3
    show_scorecards({'a': card, 'b': card.with_baseline(valid)}).savefig('cards.png')
    card.R3 + 1 # pyright: ignore[reportOptionalOperand]
    scorecard((x, y), (x, y), slices='2') # pyright: ignore[reportArgumentType]
    return accuracy, card.match['DC'], card.accuracy['r']['DC'], card.to_json(indent=2)


def measure_an_embedding(x: np.ndarray, y: Tensor, rows: np.ndarray):
    card = metrics_card(x, y)
    metrics_card(torch.tensor(x), y.numpy(), slices=[16, 48], names=['a', 'b'], shared=('a',), discrete=[True, False], mlp=False)
    metrics_card(x, y, slices=[[0, 2], [1, 3]], test=(x, y))
    card: MetricsCard = metrics_card(**load_embeddings('pca.npz'), slices=(8, 8))
    save_cards({'pca': card}, 'cards.json')
    card.plot().savefig('card.png')
    print(card, compare({'pca': [card, card], 'other': [card, card]}, baseline='pca'), load_cards(Path('cards.json'))['pca'].values['mig'])
    numbers: list[float] = [cka(x, y), hsic(x, y, 'linear', bandwidth=(1., 2.)), independence_test(x, x, n_perm=99)]
    slice_dependence(x, [16, 48]), seed_agreement(x, x, slices=(16, 48))
    factors: list[Factor] = as_factors(y, y, names=['a', 'b'])
    reading = read_factor(x, x, factors[0], 'mlp', width=64)
    numbers += [reading.accuracy(), reading.information(rows), reading.normalised(slice(10)), mig(x), mig(x, np.ones(2)), reading.probe.weight.norm().item()]
    boosted_trees(x, factors, max_features=None), boosted_trees(x, factors, max_features=2), ridge_probe(x, y[:, 0]).predict(x)
    metrics_card(x, y, slices=2.) # pyright: ignore[reportArgumentType]
    return numbers, card.values['gap']['block']['value'], card.meta['seconds']


def read_results(folder: Path):
    runs = [Run('runs/none'), Run(folder)]
    print(results_table(runs), write_report(runs, 'runs/report'), runs[0].card.R1, runs[0].config['lam'], runs[0].steps[-1]['loss'])
    plot_losses(runs[0]), plot_maps(runs[0]), plot_neighbours(runs[0], queries=(0, 5))
    write_json('a.json', {'a': 1})
    model: SlicedModel = load_model('runs/hess')
    print(model_card(runs[0]), save_hub(runs[0], 'hub').name, load_model(folder)(torch.zeros(2, 3, 64, 64)))
    z, factors = runs[0].parts['test']
    write_embeddings('z.npz', z, factors, ('DC', 'DL', 'BC'), runs[0].slices), write_embeddings(folder/'z.parquet', z, factors, ['DC', 'DL', 'BC'])
    page: str = explorer_html(runs[0], n=100)
    write_explorer(runs[0], 'explorer.html', n=500), write_gallery(runs[0], 'gallery')
    own = Embedded(runs[0].parts, runs[0].images(), slices=[16, 48], classes={'DC': list(range(10))})
    Run(1) # pyright: ignore[reportArgumentType]
    return page, model.n_slices, retrieval_accuracy(own, k=3)['top-1'], own_slices(runs[0])['DC'].start


def study(folder: Path):
    disentangle_run(reg='hess', lam=.1, steps=20, quiet=True, out=str(folder/'hess')), disentangle_report(['runs/none', 'runs/hess']), disentangle_study('study.json', jobs=1)
    run({'steps': 3}, 'runs/own', progress=False).card.R1
    records = read_records('results/poster.jsonl') + run_study('results/poster.json', folder, progress=print)
    write_records(records, 'records.jsonl')
    print(results_table(recorded('results/demo.json')), methods_table(records, ['none', 'hess'], columns=['R1']), findings_table(records), leaderboard(records, told='one kind'))
    plot_tradeoff(records).set_title('trade-off')
    return distance(card_of(records[0], records, 'validation')), leaderboard_rows(records)[0]['gap'], measure('hess', 256)['ms'], make_loss('infomax')
