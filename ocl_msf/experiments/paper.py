"""The paper's tables: its numbers, in its words, and which runs of ours reproduce each row.

A table has parts, a part has rows. Numbers are percentages, except for object separability, which is a distance between
guidance vectors.
"""

import statistics
from typing import Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

SCORES = ("ari", "ari_fg", "miou", "mbo")
SUM = ("ari+ari_fg",)


class Row(NamedTuple):
    """One line of a table.

    Attributes:
        dataset: its name in the names of experiments.
        label: the paper's name of the method.
        values: the paper's numbers, one for each of the part's metrics.
        variant: the `msf/variant` of our runs; None for a method without a VAE.
        overrides: further overrides of stage 2.
        model: the model of stage 2, if it differs from the part's.
    """

    dataset: str
    label: str
    values: Tuple[float, ...]
    variant: Optional[str] = None
    overrides: Tuple[str, ...] = ()
    model: Optional[str] = None


class TablePart(NamedTuple):
    """A table of the paper, or a part of one.

    Attributes:
        title: what it compares.
        model: the model of stage 2; None if stage 1 itself is scored.
        metrics: names of scores; "a+b" is the sum of two.
        rows: see Row.
        pretraining: name of the experiments of stage 1, with {} for the dataset.
    """

    title: str
    model: Optional[str]
    metrics: Tuple[str, ...]
    rows: List[Row]
    pretraining: str = "vqvae_{}"

    def experiments(self, row: Row) -> List[str]:
        """Names, below `msf/`, of what a row trains: stage 1 if it has a VAE, then stage 2 if that is scored."""
        model = row.model or self.model
        stage_1 = [self.pretraining.format(row.dataset)] if row.variant else []
        return stage_1 + ([f"{model}_{row.dataset}"] if model else [])


VARIANTS = {"+GDR@g2": "gdr", "+MSF": "msf", "DINOSAUR": None}  # all others: vq
MODELS = {"+SysBind@2": "sysbinder", "DINOSAUR": "dinosaur"}  # all others: the part's


def _rows(text: str) -> List[Row]:
    """Read lines of `dataset method number...`."""
    rows = []
    for line in text.strip().splitlines():
        dataset, label, *values = line.split()
        numbers = tuple(float(value) for value in values)
        rows.append(Row(dataset, label, numbers, VARIANTS.get(label, "vq"), model=MODELS.get(label)))
    return rows


def _ablation(title: str, *rows: Tuple) -> TablePart:
    """A part of Tables 5 and 6, with the naive CNN as encoder: (label, ARI + ARI_fg, variant, overrides...)."""
    cnn = "experiment.encoder.vit=null"
    made = [Row("clevrtex", label, (value,), variant, (cnn, *rest)) for label, value, variant, *rest in rows]
    return TablePart(title, "slate", SUM, made)


TABLE_1 = """
clevrtex SLATE_r   20.56 68.14 34.11 34.57
clevrtex +SysBind@2 23.27 71.27 35.63 36.62
clevrtex +GDR@g2   34.46 73.38 37.42 36.69
clevrtex +MSF      32.70 80.70 40.61 41.48
coco     SLATE_r   24.18 24.54 21.37 21.76
coco     +SysBind@2 25.71 24.97 21.46 22.01
coco     +GDR@g2   30.37 29.95 23.47 22.98
coco     +MSF      30.95 30.47 23.33 23.85
voc      SLATE_r   11.64 15.65 15.64 14.99
voc      +SysBind@2 11.75 16.04 15.73 15.01
voc      +GDR@g2   13.20 17.49 16.46 16.65
voc      +MSF      12.17 16.54 16.74 16.69
"""

TABLE_2 = """
movi_c STEVE_c    52.20 31.16 16.74 19.05
movi_c +SysBind@2 51.87 34.64 17.36 19.12
movi_c +GDR@g2    60.14 35.79 20.01 21.95
movi_c +MSF       60.94 36.22 20.33 22.74
movi_d STEVE_c    35.71 50.24 19.10 20.88
movi_d +SysBind@2 35.34 52.16 19.46 21.53
movi_d +GDR@g2    40.37 52.47 20.42 22.64
movi_d +MSF       43.20 55.64 21.21 23.14
movi_e STEVE_c    28.00 52.06 18.78 20.48
movi_e +SysBind@2 28.47 55.46 18.95 20.50
movi_e +GDR@g2    34.17 53.21 19.47 20.76
movi_e +MSF       36.70 54.28 20.39 22.37
"""

TABLE_3 = """
clevrtex SlotDiffuz_r 64.21 26.50 31.51 32.44
clevrtex +GDR@g2      69.21 37.83 34.74 34.03
clevrtex +MSF         71.47 38.08 35.06 35.67
clevrtex DINOSAUR     60.74 45.75 30.48 32.56
coco     SlotDiffuz_r 36.54 35.67 22.08 22.75
coco     +GDR@g2      37.68 36.33 22.73 22.25
coco     +MSF         37.63 36.99 22.32 22.87
coco     DINOSAUR     33.24 33.35 22.01 21.93
voc      SlotDiffuz_r 16.97 14.33 15.71 16.02
voc      +GDR@g2      18.20 15.59 16.11 17.04
voc      +MSF         19.40 15.69 16.37 16.76
voc      DINOSAUR     16.00 18.48 15.94 16.37
"""

TABLE_4_C256 = """
clevrtex VQ-VAE 0.534 0.043
clevrtex +MSF   0.786 0.038
coco     VQ-VAE 0.746 0.184
coco     +MSF   1.095 0.093
voc      VQ-VAE 0.633 0.191
voc      +MSF   0.978 0.101
movi_c   VQ-VAE 0.506 0.092
movi_c   +MSF   0.842 0.090
movi_d   VQ-VAE 0.511 0.089
movi_d   +MSF   0.725 0.088
movi_e   VQ-VAE 0.499 0.103
movi_e   +MSF   0.719 0.094
"""

TABLE_4_C4 = """
clevrtex VQ-VAE 0.857 0.103
clevrtex +MSF   1.473 0.099
coco     VQ-VAE 1.283 0.218
coco     +MSF   1.745 0.114
voc      VQ-VAE 1.046 0.196
voc      +MSF   1.659 0.132
"""

SEPARABILITY = ("inter", "intra")
SIZES = ("miou_small", "miou_medium", "miou_large", "miou")
TABLES: Dict[str, Dict[str, TablePart]] = {
    "table1": {"": TablePart("Transformer-based image OCL (DINO as primary encoder)", "slate", SCORES, _rows(TABLE_1))},
    "table2": {"": TablePart("Transformer-based video OCL (DINO as primary encoder)", "steve", SCORES, _rows(TABLE_2))},
    "table3": {
        "": TablePart(
            "Diffusion-based image OCL (DINO as primary encoder)",
            "slotdiffusion",
            SCORES,
            _rows(TABLE_3),
            "vqvae_{}_c4",
        )
    },
    "table4": {
        "c256": TablePart("Object separability of VAE guidance, c = 256", None, SEPARABILITY, _rows(TABLE_4_C256)),
        "c4": TablePart(
            "Object separability of VAE guidance, c = 4", None, SEPARABILITY, _rows(TABLE_4_C4), "vqvae_{}_c4"
        ),
    },
    "table5": {
        "upper-left": _ablation(
            "Inter-scale and intra-scale fusion",
            ("inter-scale and intra-scale", 100.71, "msf"),
            ("inter-scale alone", 90.85, "no_intra"),
            ("intra-scale alone", 95.64, "no_inter"),
            ("neither", 91.03, "no_fusion"),
        ),
        "upper-right": _ablation("Scale-variant codebooks", ("specified", 100.71, "msf"), ("shared", 92.28, "shared")),
        "lower-left": _ablation(
            "Number of scales", ("2", 95.83, "msf_n2"), ("3", 100.71, "msf"), ("4", 98.96, "msf_n4")
        ),
        "lower-right": _ablation(
            "Number of guidance",
            ("scale 1", 100.71, "msf"),
            ("scales 1 and 2", 96.42, "msf", "msf/guidance=both"),
            ("scale 2", 89.59, "msf", "msf/guidance=scale_2"),
        ),
    },
    "table6": {
        "": _ablation(
            "Fusions among scales",
            ("channel-concat", 92.63, "concat"),
            ("element-wise-sum", 89.18, "sum"),
            ("our msf", 100.71, "msf"),
        )
    },
    "table7": {
        "": TablePart(
            "mIoU by object size",
            "slate_sized",
            SIZES,
            [
                Row("coco", "SLATE", (8.57, 26.65, 34.57, 26.94), "vq"),
                Row("coco", "+MSF", (12.63, 28.14, 34.83, 29.57), "msf"),
            ],
        )
    },
    "table8": {
        "128": TablePart(
            "Number of scales at 128x128",
            "slate",
            SUM,
            [Row("openimages", "3", (62.07,), "msf"), Row("openimages", "4", (60.93,), "msf_n4")],
        ),
        "256": TablePart(
            "Number of scales at 256x256",
            "slate_256",
            SUM,
            [
                Row("openimages", "3", (64.82,), "msf"),
                Row("openimages", "4", (67.58,), "msf_n4"),
                Row("openimages", "5", (62.75,), "msf_n5"),
            ],
            "vqvae_{}_256",
        ),
    },
}


def value_of(metric: str, scores: Mapping[str, float]) -> float:
    """A score as tables print it: in percent, except for distances; "a+b" is a sum."""
    return (1 if metric in SEPARABILITY else 100) * sum(scores[name] for name in metric.split("+"))


def mean_and_deviation(values: Sequence[float]) -> Tuple[float, float]:
    """Mean and sample standard deviation; the deviation of a single value is 0."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def format_scores(metric: str, runs: Iterable[Mapping[str, float]]) -> str:
    """Mean ± sample standard deviation over the runs that have the score, as tables print it; "-" if none has."""
    values = [value_of(metric, scores) for scores in runs if set(metric.split("+")) <= set(scores)]
    if not values:
        return "-"
    mean, deviation = (format_value(metric, number) for number in mean_and_deviation(values))
    return f"{mean} ± {deviation}" if len(values) > 1 else mean


def format_value(metric: str, value: float) -> str:
    """Two decimals of a percentage, three of a distance."""
    return f"{value:.{3 if metric in SEPARABILITY else 2}f}"
