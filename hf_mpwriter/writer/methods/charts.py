"""Custom scalars: how TensorBoard puts several scalars into one chart."""

from __future__ import annotations

from typing import Any

from hf_mpwriter.writer.scalars import ScalarMethods


class ChartMethods(ScalarMethods):
    """`add_custom_scalars`, `add_custom_scalars_multilinechart` and `add_custom_scalars_marginchart`."""

    def add_custom_scalars(self, layout: dict[str, dict[str, list[Any]]]) -> None:
        """Add the charts of the tab "Custom scalars". TensorBoard shows the layout that was added last.

        Args:
            layout: `{category: {title: ["Multiline", [tag, ...]]}}`, or `["Margin", [value, lower, upper]]`: tags of
                `add_scalar`.

        Raises:
            NotLoggableError: the layout has another form.

        Example:
            writer.add_custom_scalars({"Loss": {"both": ["Multiline", ["loss/train", "loss/test"]]}})
        """
        super().add_custom_scalars(layout)

    def add_custom_scalars_multilinechart(
        self, tags: list[str], category: str = "default", title: str = "untitled"
    ) -> None:
        """Add one chart with several lines.

        Args:
            tags: of `add_scalar`, a line for each; TensorBoard takes regular expressions too.
            category: of the tab "Custom scalars".
            title: of the chart.

        Raises:
            NotLoggableError: a tag is no string.
        """
        super().add_custom_scalars_multilinechart(tags, category, title)

    def add_custom_scalars_marginchart(
        self, tags: list[str], category: str = "default", title: str = "untitled"
    ) -> None:
        """Add one chart with a line in a band.

        Args:
            tags: three tags of `add_scalar`: value, lower and upper limit.
            category: of the tab "Custom scalars".
            title: of the chart.

        Raises:
            NotLoggableError: there are not three tags, or one is no string.
        """
        super().add_custom_scalars_marginchart(tags, category, title)
