"""H': the base model after a few steps of `lrk-train`, for analyses that have none at hand."""

from pathlib import Path

from transformers import PretrainedConfig

from lrk.analysis.arguments import AnalysisArguments
from lrk.merge.checkpoint import INDEX, WEIGHTS
from lrk.train import LrkTrainingArguments, train

FOLDER = "extended"
# LongRecipe goes from 8k to 16k before it compares.
FACTOR = 2


def train_extended(arguments: AnalysisArguments, config: PretrainedConfig) -> Path:
    """Train the base model for `extend_steps` steps to twice its window, once.

    A run that was stopped begins again; one that is finished is left as it is.

    Args:
        config: of the base model.

    Returns:
        The folder of the extended model.

    Raises:
        ValueError: as `lrk-train`.
    """
    folder = Path(arguments.output_dir) / FOLDER
    # Of a model in several files the index is written last.
    if not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        train(training_arguments(arguments, config, folder))
    return folder


def training_arguments(
    arguments: AnalysisArguments, config: PretrainedConfig, folder: Path
) -> LrkTrainingArguments:
    """Of the short stage: positions skip over twice the window, the learning rate is constant."""
    return LrkTrainingArguments(
        model_name_or_path=arguments.model,
        gguf_file=arguments.gguf_file,
        dtype="float32" if arguments.dtype == "auto" else arguments.dtype,
        data=arguments.extend_data,
        text_column=arguments.text_column,
        target_length=FACTOR * config.max_position_embeddings,
        train_length=arguments.extend_length,  # type: ignore[arg-type]
        max_steps=arguments.extend_steps,
        learning_rate=arguments.extend_learning_rate,
        lr_scheduler_type="constant",
        output_dir=str(folder),
        resume_from_checkpoint="auto",
        save_strategy="no",
        report_to="none",
        use_cpu=arguments.device == "cpu",
    )
