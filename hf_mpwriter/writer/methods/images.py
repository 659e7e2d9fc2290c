"""Images, figures and videos: tensorboardX encodes them as PNG and GIF, and the event file holds the bytes."""

from __future__ import annotations

from typing import Any, overload

from hf_mpwriter.writer.scalars import ScalarMethods
from hf_mpwriter.writer.values import Array, Step, plain


class ImageMethods(ScalarMethods):
    """`add_image`, `add_images`, `add_image_with_boxes`, `add_figure` and `add_video`."""

    def add_image(
        self,
        tag: str,
        img_tensor: Array,
        global_step: Step = None,
        walltime: float | None = None,
        dataformats: str = "CHW",
    ) -> None:
        """Add an image. It needs Pillow.

        Args:
            tag: its name.
            img_tensor: tensor or array of shape (C, H, W) with C of 1, 3 or 4: grey, RGB or RGBA; other orders with
                `dataformats`. Values are uint8 in [0, 255]; those of any other type are taken for floats in [0, 1],
                and multiplied by 255.
            global_step: step, a whole number.
            walltime: unix time in seconds, None for now.
            dataformats: order of the dimensions: CHW, HWC, HW, or NCHW for a grid of images.

        Raises:
            NotLoggableError: the shape does not fit `dataformats`, or this is no tensor.

        Example:
            writer.add_image("samples", np.random.rand(3, 64, 64), step)
        """
        super().add_image(tag, plain(img_tensor), global_step, walltime, dataformats)

    def add_images(
        self,
        tag: str,
        img_tensor: Array,
        global_step: Step = None,
        walltime: float | None = None,
        dataformats: str = "NCHW",
    ) -> None:
        """Add several images, which TensorBoard shows as one grid. It needs Pillow.

        Args:
            tag: name of the grid.
            img_tensor: tensor or array of shape (N, C, H, W) with C of 1 or 3, or a list of N images of equal shape;
                with a list, `dataformats` is CHW or HWC, and torch has to be installed. Values as in `add_image`.
            global_step: step, a whole number.
            walltime: unix time in seconds, None for now.
            dataformats: order of the dimensions: NCHW or NHWC; of the images of a list: CHW or HWC.

        Raises:
            NotLoggableError: the shape does not fit `dataformats`, or this is no tensor.
        """
        super().add_images(tag, plain(img_tensor), global_step, walltime, dataformats)

    @overload
    def add_image_with_boxes(
        self,
        tag: str,
        img_tensor: Array,
        box_tensor: Array,
        global_step: Step = None,
        walltime: float | None = None,
        dataformats: str = "CHW",
        labels: list[str] | str | None = None,
        *,
        rescale: float = 1,
    ) -> None: ...

    @overload
    def add_image_with_boxes(
        self,
        tag: str,
        img_tensor: Array,
        box_tensor: Array,
        global_step: Step = None,
        walltime: float | None = None,
        rescale: float = 1,
        dataformats: str = "CHW",
        labels: list[str] | str | None = None,
    ) -> None: ...

    def add_image_with_boxes(
        self,
        tag: str,
        img_tensor: Array,
        box_tensor: Array,
        global_step: Step = None,
        walltime: float | None = None,
        *args: Any,
        rescale: float = 1,
        dataformats: str = "CHW",
        labels: list[str] | str | None = None,
    ) -> None:
        """Add an image, and draw boxes into it. It needs Pillow.

        Args:
            tag: its name.
            img_tensor: shape as `dataformats` says; values as in `add_image`.
            box_tensor: shape (N, 4): xmin, ymin, xmax, ymax in pixels.
            global_step: step, a whole number.
            walltime: unix time in seconds, None for now.
            *args: tensorboardX's order (dataformats, labels) or torch's (rescale, dataformats, labels): a number is
                the scale, the first string the format.
            rescale: factor by which the image is enlarged.
            dataformats: order of the dimensions: CHW, HWC or HW.
            labels: a text for each box; left out, with a warning, if there are not N.

        Raises:
            NotLoggableError: a shape does not fit, or this is no tensor.
        """
        rest = list(args)
        if rest and not isinstance(rest[0], str):
            rescale = rest.pop(0)
        dataformats = rest.pop(0) if rest else dataformats
        labels = rest.pop(0) if rest else labels
        super().add_image_with_boxes(
            tag,
            plain(img_tensor),
            plain(box_tensor),
            global_step,
            walltime,
            dataformats=dataformats,
            labels=labels,
            rescale=rescale,
        )

    def add_figure(
        self,
        tag: str,
        figure: Any,
        global_step: Step = None,
        close: bool = True,
        walltime: float | None = None,
    ) -> None:
        """Draw a figure of matplotlib, and add it as an image.

        Args:
            tag: its name.
            figure: `matplotlib.figure.Figure`, or a list of figures of equal size in pixels, which become one grid.
            global_step: step, a whole number.
            close: whether to close the figure, so that pyplot keeps it no longer.
            walltime: unix time in seconds, None for now.

        Raises:
            NotLoggableError: this is no figure.
        """
        super().add_figure(tag, figure, global_step, close, walltime)

    def add_video(
        self,
        tag: str,
        vid_tensor: Array,
        global_step: Step = None,
        fps: float = 4,
        walltime: float | None = None,
        dataformats: str = "NTCHW",
    ) -> None:
        """Add a video, as an animated GIF. It needs moviepy.

        Args:
            tag: its name.
            vid_tensor: tensor or array of shape (N, T, C, H, W): N videos in a grid, of T frames each, with C of 1 or
                3. Values as in `add_image`.
            global_step: step, a whole number.
            fps: frames per second.
            walltime: unix time in seconds, None for now.
            dataformats: order of the dimensions.

        Raises:
            NotLoggableError: the shape does not fit `dataformats`, or this is no tensor.
        """
        super().add_video(tag, plain(vid_tensor), global_step, fps, walltime, dataformats)
