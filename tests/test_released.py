"The reader of the released shards: any message survives, any damage is noticed."
import struct

import numpy as np
import pytest
import torch
from disentangle_nb.overlay import Augment
from disentangle_nb.released import (crc32c, crc32c_by_byte, encode_example, encode_pair, frame, parse_example, read_tfrecord,
                                     released_pairs, released_shards, released_stream, shard_path, split_label, write_released, write_tfrecord)
from disentangle_nb.results import Run
from disentangle_nb.run import OPTIONS, check_config, config_of, run_options, train_stream
from disentangle_nb.sharing import model_card
from hypothesis import given, strategies as st

floats = st.floats(width=32, allow_nan=False)
ints = st.integers(-2**63, 2**63 - 1)
values = st.one_of(*(st.lists(x, max_size=5) for x in (st.binary(max_size=300), ints, floats)))
examples = st.dictionaries(st.text(max_size=20), values, max_size=5)
messages = st.lists(st.binary(max_size=40), min_size=1, max_size=4)


@given(st.binary(max_size=5000))
def test_crc_is_the_definition(data): assert crc32c(data) == crc32c_by_byte(data)


@given(examples)
def test_an_example_survives(example): assert parse_example(encode_example(example)) == example


@given(st.binary(max_size=60))
def test_noise_is_an_example_or_a_value_error(noise):
    try: assert isinstance(parse_example(noise), dict)
    except ValueError: pass


@given(examples.filter(bool), st.data())
def test_a_cut_example_is_an_error(example, data):
    whole = encode_example(example)
    with pytest.raises(ValueError): parse_example(whole[:data.draw(st.integers(1, len(whole) - 1))])


@pytest.fixture(scope='module')
def path(tmp_path_factory): return tmp_path_factory.mktemp('records')/'shard'


@given(messages)
def test_records_survive(path, records):
    write_tfrecord(path, records)
    assert list(read_tfrecord(path)) == records == list(read_tfrecord(path, verify=False))


@given(messages, st.data())
def test_any_flipped_bit_is_noticed(path, records, data):
    content = bytearray(b''.join(map(frame, records)))
    bit = data.draw(st.integers(0, 8*len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(ValueError, match='checksum'): list(read_tfrecord(path))


@given(messages, st.data())
def test_any_cut_inside_a_record_is_noticed(path, records, data):
    ends = np.cumsum([len(frame(r)) for r in records]).tolist()
    place = data.draw(st.integers(1, ends[-1]).filter(lambda n: n not in ends))
    path.write_bytes(b''.join(map(frame, records))[:place])
    for verify in (True, False):
        with pytest.raises(ValueError, match='truncated'): list(read_tfrecord(path, verify))


def test_a_huge_length_is_no_huge_allocation(path):
    path.write_bytes(struct.pack('<Q', 2**63) + bytes(100))
    with pytest.raises(ValueError, match='truncated'): list(read_tfrecord(path, verify=False))


def test_an_old_file_stays_when_writing_fails(path):
    write_tfrecord(path, [b'old'])
    with pytest.raises(TypeError): write_tfrecord(path, [b'new', None])
    assert list(read_tfrecord(path)) == [b'old'] and list(path.parent.iterdir()) == [path]


kinds = ['DC', 'DL', 'BC', 'DC-DL', 'DC-BC', 'DL-BC', 'DC-DL-BC']


@pytest.mark.parametrize('kind', kinds)
def test_labels_are_one_to_one(kind):
    sizes = [dict(DC=10, DL=8, BC=10)[f] for f in kind.split('-')]
    factors = split_label(np.arange(np.prod(sizes)), kind)
    fixed = factors[:, [f in kind.split('-') for f in ('DC', 'DL', 'BC')]]
    assert (factors == -1).sum() == (3 - len(sizes)) * len(factors)
    assert np.array_equal(np.ravel_multi_index(tuple(fixed.T), sizes), np.arange(np.prod(sizes)))


def smooth_pairs(n, size=(64, 64)):
    "Pairs whose views JPEG keeps nearly as they are: one colour that tells the pair and the view"
    return [(np.full((*size, 3), (i, 2*i, 9), np.uint8), np.full((*size, 3), (9, i, 255 - i), np.uint8), i % 80) for i in range(n)]


@pytest.mark.parametrize('kind', ['DC-BC', 'DC-DL', 'BC-DL'])
@pytest.mark.parametrize('n, total', [(1, 1), (7, 3), (2, 5)])
def test_pairs_survive(tmp_path, kind, n, total):
    write_released(tmp_path, kind, 'train', smooth_pairs(n), total)
    x0, x1, factors = released_pairs(tmp_path, kind, 'train')
    wanted = [torch.from_numpy(np.stack([pair[k] for pair in smooth_pairs(n)])).permute(0, 3, 1, 2).int() for k in (0, 1)]
    assert all((x.int() - w).abs().max() <= 3 for x, w in zip((x0, x1), wanted))
    assert np.array_equal(factors, split_label(np.arange(n), kind))
    assert torch.equal(released_pairs(tmp_path, kind, 'train', limit=1)[0], x0[:1])


def test_shapes_other_than_square(tmp_path):
    write_released(tmp_path, 'DC-BC', 'test', smooth_pairs(2, (24, 40)), 1)
    assert released_pairs(tmp_path, 'DC-BC', 'test')[0].shape == (2, 3, 24, 40)


@pytest.mark.parametrize('bs', [6, 7, 20])
def test_several_kinds_share_a_batch(tmp_path, bs):
    sizes = {'DC-BC': 8, 'DC-DL': 9, 'DL-BC': 7}
    for kind, n in sizes.items(): write_released(tmp_path, kind, 'train', smooth_pairs(n), 2)
    stream, seen = released_stream(tmp_path, list(sizes), bs=bs), {k: set() for k in sizes}
    whole = {k: released_pairs(tmp_path, k) for k in sizes}
    for b in range(40):
        x, factors, kind = stream.batch(b)
        assert torch.equal(kind, torch.arange(bs) * 3 // bs) and torch.equal(factors[:bs], factors[bs:])
        x = ((x / 4 + .5) * 255).round().byte()
        for i in range(bs):
            name = list(sizes)[kind[i]]
            x0, x1, labels = whole[name]
            row = next(j for j in range(len(x0)) if torch.equal(labels[j], factors[i]))
            assert torch.equal(x[i], x0[row]) and torch.equal(x[bs + i], x1[row])
            seen[name].add((b, row))
    shares = kind.bincount().tolist()
    assert [len(rows) for rows in seen.values()] == [40 * n for n in shares], 'a pair twice in a batch'
    assert all({row for _, row in rows} == set(range(sizes[k])) for k, rows in seen.items()), 'a pair that is never drawn'
    ranks = [stream.batch(3, slice(j, j + 2)) for j in range(0, bs - 1, 2)]
    assert torch.equal(torch.cat([r[2] for r in ranks]), stream.batch(3)[2][:2 * len(ranks)])
    assert torch.equal(torch.cat([r[0][:2] for r in ranks]), stream.batch(3)[0][:2 * len(ranks)])


def test_kinds_that_do_not_fit_together(tmp_path):
    write_released(tmp_path, 'DC-BC', 'train', smooth_pairs(5), 1)
    write_released(tmp_path, 'DC-DL', 'train', smooth_pairs(5, (24, 40)), 1)
    with pytest.raises(ValueError, match=r'different sizes: \[\(24, 40\), \(64, 64\)\]'): released_stream(tmp_path, 'DC-BC,DC-DL', bs=4)
    with pytest.raises(ValueError, match='takes 6 of DC-BC, of which there are 5'): released_stream(tmp_path, 'DC-BC', bs=6)
    with pytest.raises(ValueError, match='too small for 2 kind'): released_stream(tmp_path, 'DC-BC,DC-DL', bs=3)
    with pytest.raises(ValueError, match='cannot be mirrored'): released_stream(tmp_path, 'DC-BC', bs=2, augment=Augment(flip=True))


def test_options_that_released_pairs_cannot_follow(tmp_path):
    write_released(tmp_path, 'DC-BC', 'train', smooth_pairs(5), 1)
    config = dict(kinds=['DC-BC'], bs=2, seed=0, contrast=.2, shift=.1, flip=False, released=tmp_path, crop='centre', same='class', size=64)
    assert train_stream(config, None).batch(0)[0].shape == (4, 3, 64, 64)
    with pytest.raises(ValueError, match='give --size 64'): train_stream(config | {'size': 32}, None)
    for option in ({'crop': 'random'}, {'same': 'instance'}, {'flip': True}):
        with pytest.raises(ValueError, match='made already'): train_stream(config | option, None)
        with pytest.raises(ValueError, match='made already'): check_config(config_of(OPTIONS | {'released': str(tmp_path)} | option))


def test_a_run_goes_on_with_the_shards_it_began_with(tmp_path):
    shards, run = tmp_path/'shards', tmp_path/'run'
    write_released(shards, 'DC-BC', 'train', smooth_pairs(8), 1)
    options = OPTIONS | dict(released=str(shards), bs=4, epoch=2, dim=8, hidden=8, threads=1, precision='fp32', steps=4)
    run_options(options, run, False, True)
    assert "pairs of the authors' released data (and probed on the data set `embedded`)" in model_card(Run(run))
    (run/'scorecard.json').unlink()
    write_released(shards, 'DC-BC', 'train', smooth_pairs(9), 1)
    with pytest.raises(ValueError, match='holds a run of other options: images was'): run_options(options, run, True, True)
    write_released(shards, 'DC-BC', 'train', smooth_pairs(8), 1)
    assert run_options(options, run, True, True).config['steps'] == 4


def test_wrong_names_are_no_shards(tmp_path):
    write_released(tmp_path, 'DC-BC', 'train', smooth_pairs(1), 1)
    path = shard_path(tmp_path, 'DC-BC', 'train', 0, 1)
    path.rename(tmp_path/(path.name + '.part'))
    with pytest.raises(FileNotFoundError, match='no released shard at all'): released_shards(tmp_path, 'DC-BC', 'train')


def test_two_sets_in_one_folder(tmp_path):
    for total in (1, 2): write_released(tmp_path, 'DC-BC', 'train', smooth_pairs(2), total)
    with pytest.raises(ValueError, match='1 and 2 shards'): released_pairs(tmp_path, 'DC-BC')


def test_all_missing_shards_are_listed(tmp_path):
    write_released(tmp_path, 'DC-BC', 'train', smooth_pairs(3), 75)
    for n in (3, 74): shard_path(tmp_path, 'DC-BC', 'train', n, 75).unlink()
    with pytest.raises(FileNotFoundError, match='lacks 2 of 75 shards: .*train-00003-of-00075, .*train-00074-of-00075$'):
        released_pairs(tmp_path, 'DC-BC', 'train')


def test_no_pairs(tmp_path):
    write_released(tmp_path, 'DC-BC', 'train', [], 2)
    with pytest.raises(ValueError, match='holds no DC-BC pairs'): released_pairs(tmp_path, 'DC-BC')


def test_grey_pictures_are_refused(tmp_path):
    view, _, label = smooth_pairs(1)[0]
    record = encode_example({k: v for k, v in parse_example(encode_pair(view, view, label)).items()} | {'channels': 1})
    write_tfrecord(shard_path(tmp_path, 'DC-BC', 'train', 0, 1), [record])
    with pytest.raises(ValueError, match=r'record 0: view0 is \(64, 64, 3\), but height, width and channels say \(64, 64, 1\)'):
        released_pairs(tmp_path, 'DC-BC')
