"""The three plugins do what plugins of their kinds must."""

from assay_example import Iris, Linear, MeanRank

from assay.testing import DatasetKit, MetricKit, ModelKit


class TestLinear(ModelKit):
    """The model."""

    def plugin(self) -> Linear:
        return Linear()


class TestIris(DatasetKit):
    """The dataset."""

    def plugin(self) -> Iris:
        return Iris()


class TestMeanRank(MetricKit):
    """The metric."""

    def plugin(self) -> MeanRank:
        return MeanRank()
