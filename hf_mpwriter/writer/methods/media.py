"""Sounds, texts and whole tensors."""

from __future__ import annotations

from hf_mpwriter.writer import summaries
from hf_mpwriter.writer.scalars import ScalarMethods
from hf_mpwriter.writer.values import Array, Number, Step, plain, sound


class MediaMethods(ScalarMethods):
    """`add_audio`, `add_text` and `add_tensor`."""

    def add_audio(
        self,
        tag: str,
        snd_tensor: Array,
        global_step: Step = None,
        sample_rate: int = 44100,
        walltime: float | None = None,
    ) -> None:
        """Add a sound, as WAV with 16 bits a sample. It needs soundfile.

        Args:
            tag: its name.
            snd_tensor: tensor or array of shape (L, C) with L samples in one or two channels, or torch's (1, L).
                Values are floats in [-1, 1]; what is beyond is cut off.
            global_step: step, a whole number.
            sample_rate: in Hz.
            walltime: unix time in seconds, None for now.

        Raises:
            NotLoggableError: the shape does not fit, or this is no tensor.
        """
        super().add_audio(tag, sound(plain(snd_tensor)), global_step, sample_rate, walltime)

    def add_text(self, tag: str, text_string: str, global_step: Step = None, walltime: float | None = None) -> None:
        """Add a text.

        Args:
            tag: its name.
            text_string: Markdown, which TensorBoard renders.
            global_step: step, a whole number.
            walltime: unix time in seconds, None for now.

        Raises:
            NotLoggableError: this is no string.
        """
        self._get_file_writer().add_summary(summaries.text(tag, text_string), global_step, walltime)

    def add_tensor(
        self, tag: str, tensor: Array | Number, global_step: Step = None, walltime: float | None = None
    ) -> None:
        """Add a tensor with all its values, which a program can read from the event file.

        Args:
            tag: its name.
            tensor: a tensor or an array of any shape: bool, integers, floats or complex numbers; bfloat16 and 8-bit
                floats become float32.
            global_step: step, a whole number.
            walltime: unix time in seconds, None for now.

        Raises:
            NotLoggableError: the tensor has 2 GiB or more, or a type that cannot be stored.
        """
        self._get_file_writer().add_summary(summaries.tensor(tag, tensor), global_step, walltime)
