"CSV files as people write them"
import numpy as np, pytest, torch
from PIL import Image

from disentangle_nb.table import Table, read_table


@pytest.fixture
def written(tmp_path):
    for i in range(12): Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(tmp_path/f'{i}.png')
    def write(header, row, encoding='utf-8'):
        (tmp_path/'t.csv').write_text('\n'.join([header, *(row.format(i, i % 2) for i in range(12))]), encoding=encoding)
        return tmp_path/'t.csv'
    return write


def test_spaces_around_names_do_not_matter(written):
    table = read_table(written('file, shape , split', '{0}.png, {1}, train'), size=8)
    assert list(table.classes) == ['shape'] and len(table) == 12


@pytest.mark.parametrize('header, row, message', [
    ('file,a,split', '{0}.png,{1},trian', "line 2: split is 'trian'"),
    ('file,a,a', '{0}.png,{1},{1}', "two columns 'a'"),
    ('file,a', '{0}.png', 'line 2: a is empty'),
    ('file,none', '{0}.png,{1}', "nor be 'none'")])
def test_mistakes_are_named(written, header, row, message):
    with pytest.raises(ValueError, match=message): read_table(written(header, row), size=8)


def test_a_factor_named_twice_and_images_without_a_pixel_are_refused(written):
    path = written('file,a', '{0}.png,{1}')
    with pytest.raises(ValueError, match="names must differ, .'a'. occur more than once"): read_table(path, factors=['a', 'a'], size=8)
    with pytest.raises(ValueError, match='size must be 1 pixel or more, got 0'): read_table(path, size=0)


def test_a_class_that_training_lacks_is_named(tmp_path):
    rows = [f'{i}.png,{"z" if i == 11 else "xy"[i % 2]},{"test" if i > 9 else "train"}' for i in range(12)]
    for i in range(12): Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(tmp_path/f'{i}.png')
    (tmp_path/'t.csv').write_text('\n'.join(['file,shape,split', *rows]))
    with pytest.raises(ValueError, match="shape 'z' occurs in no row of train"): read_table(tmp_path/'t.csv', size=8)


def test_a_value_that_training_lacks_is_named_without_a_column_split_too(written):
    path = written('file,a,angle', '{0}.png,{1},{0}.5')
    for split in ('train', 'test'):
        with pytest.raises(ValueError, match='angle .* occurs in no row of train; .* bin a continuous factor'): read_table(path, split, size=8)
    assert list(read_table(path, 'test', 'a', size=8).classes) == ['a']


def test_quotes_hold_commas_after_a_blank_too_and_are_closed(written):
    assert read_table(written('file, "my a"', '{0}.png, "x, {1}"'), None, size=8).classes == {'my a': ['x, 0', 'x, 1']}
    path = written('file,a', '{0}.png,{1}')
    path.write_text(path.read_text().replace('2.png,', '2.png,"').replace('3.png,', '3.png,"'))
    with pytest.raises(ValueError, match='is a quote not closed'): read_table(path, None, size=8)


def test_lines_are_those_of_the_file(tmp_path):
    (tmp_path/'t.csv').write_text('file,a\n\n0.png,x\n\n1.png,\n')
    with pytest.raises(ValueError, match='line 5: a is empty'): read_table(tmp_path/'t.csv')


def test_other_encodings_are_named(written):
    with pytest.raises(ValueError, match='t.csv is not UTF-8'): read_table(written('file,a', '{0}.png,ä{1}', 'latin-1'), size=8)


def test_few_rows_without_a_split(written):
    path = written('file,a', '{0}.png,{1}')
    path.write_text('\n'.join(path.read_text().splitlines()[:5]))
    with pytest.raises(ValueError, match='4 rows, too few to split'): read_table(path, 'valid', size=8)
    assert len(read_table(path, None, 'a', size=8)) == 4


def test_order_of_classes_is_that_of_numbers_then_of_text(written):
    path = written('file,a', '{0}.png,{1}')
    names = lambda values: (path.write_text('\n'.join(['file,a', *(f'{i}.png,{v}' for i, v in enumerate(values))])), read_table(path, None, size=8).classes['a'])[1]
    assert names(['10', '2', '1.5', '1']) == ['1', '1.5', '2', '10']
    assert names(['10', 'nan', 'x']) == ['10', 'nan', 'x']
    with pytest.raises(ValueError, match="a is 'nan' beside numbers"): names(['10', 'nan', '2'])
    with pytest.raises(ValueError, match='one number written in two ways, 1 and 1.0'): names(['10', '1.0', '1'])
    assert names(['1e999999999', '2', '-1e999999999']) == ['-1e999999999', '2', '1e999999999']


def test_a_cell_that_csv_cannot_hold_is_named(written):
    path = written('file,a', '{0}.png,x')
    path.write_text('file,a\n0.png,' + 'x' * 200_000)
    with pytest.raises(ValueError, match='line 2: not CSV'): read_table(path)


def test_labels_are_whole_numbers():
    with pytest.raises(ValueError, match='int64'): Table(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 1), {'a': ['x', 'y']})
