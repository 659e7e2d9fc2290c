"""Histograms and precision-recall curves."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_mpwriter.writer.scalars import ScalarMethods
from hf_mpwriter.writer.values import Array, Number, Step, as_number, plain


class DistributionMethods(ScalarMethods):
    """`add_histogram`, `add_histogram_raw`, `add_pr_curve` and `add_pr_curve_raw`."""

    def add_histogram(
        self,
        tag: str,
        values: Array | Number,
        global_step: Step = None,
        bins: str | Array = "tensorflow",
        walltime: float | None = None,
        max_bins: int | None = None,
    ) -> None:
        """Add a histogram.

        Args:
            tag: its name.
            values: a tensor or an array of any shape, with one finite number at least; or one number, also in a string
                or in bytes.
            global_step: step, a whole number.
            bins: how the bins are made: `tensorflow` for limits that grow by 10 % each; or `auto`, `fd`, the limits,
                and whatever `numpy.histogram` takes.
            walltime: unix time in seconds, None for now.
            max_bins: number of bins, at most; neighbours are joined.

        Raises:
            NotLoggableError: there is no value, one is not finite, or numpy does not know these bins.
        """
        number = as_number(values) if isinstance(values, (str, bytes)) else None
        array = plain(values) if number is None else np.array([number])
        super().add_histogram(tag, array, global_step, bins, walltime, max_bins)

    def add_histogram_raw(
        self,
        tag: str,
        min: Number,  # noqa: A002 - the name that both libraries have
        max: Number,  # noqa: A002 - the same
        num: Number,
        sum: Number,  # noqa: A002 - the same
        sum_squares: Number,
        bucket_limits: Array,
        bucket_counts: Array,
        global_step: Step = None,
        walltime: float | None = None,
    ) -> None:
        """Add a histogram that is counted already.

        Args:
            tag: its name.
            min: the smallest value.
            max: the largest value.
            num: number of values.
            sum: of the values.
            sum_squares: sum of the squares of the values.
            bucket_limits: shape (B,): upper limit of each bin. `numpy.histogram` returns B + 1: leave out the first.
            bucket_counts: shape (B,): number of values in each bin.
            global_step: step, a whole number.
            walltime: unix time in seconds, None for now.

        Raises:
            NotLoggableError: there are more limits than counts, or fewer.
        """
        facts = map(plain, (min, max, num, sum, sum_squares, bucket_limits, bucket_counts))
        super().add_histogram_raw(tag, *facts, global_step, walltime)

    def add_pr_curve(
        self,
        tag: str,
        labels: Array,
        predictions: Array,
        global_step: Step = None,
        num_thresholds: int = 127,
        weights: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Add a precision-recall curve, of which TensorBoard lets you choose the threshold.

        Args:
            tag: its name.
            labels: shape (N,): what is true, 0 or 1, or a bool.
            predictions: shape (N,): the probability of each to be true, in [0, 1].
            global_step: step, a whole number.
            num_thresholds: points of the curve, at most 127.
            weights: shape (N,): weight of each, or one number for all; None for 1.
            walltime: unix time in seconds, None for now.

        Raises:
            NotLoggableError: a shape does not fit, or this is no tensor.
        """
        super().add_pr_curve(
            tag, plain(labels), plain(predictions), global_step, num_thresholds, plain(weights), walltime
        )

    def add_pr_curve_raw(
        self,
        tag: str,
        true_positive_counts: Array,
        false_positive_counts: Array,
        true_negative_counts: Array,
        false_negative_counts: Array,
        precision: Array,
        recall: Array,
        global_step: Step = None,
        num_thresholds: int = 127,
        weights: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Add a precision-recall curve that is computed already.

        Args:
            tag: its name.
            true_positive_counts: shape (T,): at each threshold.
            false_positive_counts: shape (T,).
            true_negative_counts: shape (T,).
            false_negative_counts: shape (T,).
            precision: shape (T,), in [0, 1].
            recall: shape (T,), in [0, 1].
            global_step: step, a whole number.
            num_thresholds: T, at most 127.
            weights: accepted and not used, as in both libraries.
            walltime: unix time in seconds, None for now.

        Raises:
            NotLoggableError: the shapes differ.
        """
        counts = map(plain, (true_positive_counts, false_positive_counts, true_negative_counts, false_negative_counts))
        super().add_pr_curve_raw(
            tag, *counts, plain(precision), plain(recall), global_step, num_thresholds, plain(weights), walltime
        )
