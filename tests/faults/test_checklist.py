"""The 25 failures that data loaders of others had: which tests show that this one does not have them.

Each number has at least one test in the suite; further cases have the marker `exhaustive`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

CHECKLIST: dict[int, tuple[str, ...]] = {
    1: (
        "test_prepare_resumes_after_a_kill_to_identical_bytes_with_any_worker_count",
        "test_prefetch_sources_resumes_after_random_kills_without_finished_shards",
    ),
    2: (
        "test_prepare_resumes_after_a_signal",
        "test_download_resumes_after_a_signal",
        "test_publish_and_pull_resume_after_sigterm",
    ),
    3: (
        "test_prepare_resumes_after_a_full_disk",
        "test_write_errors_states_needed_and_free_bytes",
        "test_pull_resumes_after_a_full_disk",
    ),
    4: (
        "test_verify_and_loader_name_a_shard_cut_anywhere",
        "test_open_names_a_truncated_shard_with_its_sizes",
    ),
    5: (
        "test_verify_reports_damage",
        "test_prepare_rejects_changed_source_files",
        "test_getitem_refuses_a_remote_sample_with_another_checksum",
    ),
    6: (
        "test_prepare_resumes_after_a_kill_to_identical_bytes_with_any_worker_count",
        "test_prepare_is_independent_of_the_environment",
        "test_shards_of_a_prepared_dataset_are_the_bytes_of_webdatasets_tar_writer",
    ),
    7: (
        "test_prepare_rejects_other_settings_and_keeps_the_dataset",
        "test_prepare_overwrite_replaces_a_dataset",
    ),
    8: (
        "test_lock_folder_refuses_a_second_process_until_the_first_is_killed",
        "test_lock_folder_is_not_kept_by_a_forked_process",
        "test_prepare_refuses_a_folder_that_another_run_prepares",
        "test_download_locks_its_folder",
        "test_export_refuses_a_folder_that_another_run_exports_to",
        "test_pull_refuses_a_folder_that_another_run_downloads_to",
    ),
    9: ("test_prepare_resumes_after_a_signal",),
    10: (
        "test_fetcher_resumes_a_dropped_connection_at_the_byte",
        "test_fetcher_restarts_if_the_server_ignores_ranges",
        "test_fetcher_restarts_a_partial_file_that_is_too_long",
        "test_fetcher_rejects_a_wrong_size_before_the_body",
        "test_fetcher_stops_at_the_expected_size",
        "test_fetcher_honors_retry_after_in_seconds",
        "test_fetcher_retries_temporary_errors",
        "test_http_client_rejects_a_redirect_loop",
        "test_http_client_rejects_redirects_to_other_schemes",
        "test_fetcher_rejects_a_web_page",
        "test_fetcher_rejects_a_git_lfs_pointer",
        "test_download_tries_mirrors_in_order",
        "test_fetcher_restarts_a_corrupt_partial_file",
    ),
    11: (
        "test_download_rejects_paths_outside_the_folder",
        "test_download_quotes_special_characters_in_paths",
        "test_download_ignores_the_file_name_of_the_server",
        "test_ffmpeg_gets_no_stdin_no_shell_and_one_allowed_protocol",
    ),
    12: (
        "test_extract_archive_rejects_paths_outside_the_folder",
        "test_extract_archive_rejects_tar_members_that_are_not_files",
        "test_extract_archive_rejects_duplicate_names",
        "test_extract_archive_ignores_folders_and_modes",
        "test_extract_archive_does_not_write_through_tar_links",
        "test_extract_archive_rejects_names_that_hit_other_files",
        "test_extract_archive_keeps_unusual_names",
        "test_extract_archive_rejects_a_bomb_by_its_ratio",
        "test_extract_archive_limits_members_without_reading_them",
        "test_extract_archive_extracts_a_hundred_thousand_members",
        "test_extract_archive_explains_damaged_members",
    ),
    13: (
        "test_prepare_matches_the_ground_truth_of_a_mock",
        "test_prepare_accounts_for_every_file_with_a_damaged_header",
        "test_cut_file_is_truncated",
        "test_flash_and_beep_coincide_in_every_container",
        "test_silent_black_and_short_clips_have_their_reasons",
    ),
    14: (
        "test_run_jobs_excludes_a_crashing_item_and_finishes_the_others",
        "test_run_jobs_stops_and_excludes_an_item_that_hangs",
        "test_prepare_excludes_only_the_crashing_clip_on_both_engines",
        "test_hanging_ffmpeg_is_killed_with_its_children_at_the_time_limit",
    ),
    15: (
        "test_container_rejects_playlist_named_mp4",
        "test_playlist_named_mp4_opens_no_other_file",
        "test_disguised_playlist_is_refused_without_a_request",
    ),
    16: (
        "test_container_has_the_frame_times_and_the_audio_of_ffmpeg",
        "test_decoder_returns_the_frames_and_times_of_pyav",
        "test_audio_that_starts_before_or_after_the_video_keeps_its_time",
    ),
    17: (
        "test_decoder_memory_is_flat_over_2000_clips",
        "test_decoder_memory_is_flat_over_60_clips",
    ),
    18: (
        "test_read_never_unpickles_an_object_array",
        "test_decode_npy_refuses_object_arrays",
        "test_load_does_not_execute_pickled_code",
        "test_no_reader_unpickles_a_member",
    ),
    19: (
        "test_open_refuses_urls_that_run_a_program",
        "test_open_tars_starts_no_command_for_a_pipe_url",
        "test_no_output_of_a_preparation_contains_a_secret",
        "test_publish_redacts_the_token_everywhere",
    ),
    20: (
        "test_batches_cover_every_sample_once_with_equal_counts_per_rank",
        "test_loader_returns_identical_batches_for_any_number_of_workers",
        "test_torch_dataloader_returns_each_sample_once_over_ranks_of_equal_length",
        "test_every_world_and_number_of_workers_returns_each_sample_once",
    ),
    21: (
        "test_epoch_resumes_anywhere_on_any_number_of_ranks",
        "test_stateful_dataloader_reads_the_next_epoch_after_a_resumed_one",
        "test_loader_resumes_mid_epoch_on_fewer_ranks",
        "test_loader_resumes_twice_at_every_step",
        "test_order_depends_only_on_seed_and_epoch",
    ),
    22: (
        "test_cache_keeps_shards_of_equal_names_apart",
        "test_cache_discards_the_partial_file_of_a_killed_process",
        "test_cache_refetches_a_truncated_shard",
        "test_open_fetches_a_damaged_shard_of_the_cache_again",
        "test_reader_refetches_a_shard_evicted_before_it_is_open",
        "test_cache_respects_a_small_limit_and_the_epoch_is_complete",
    ),
    23: (
        "test_torch_dataloader_forks_after_object_storage_was_read",
        "test_ranks_of_spawn_divide_a_dataset_that_was_opened_before",
        "test_loader_is_pickled_before_and_after_iteration",
        "test_no_thread_or_process_outlives_a_call",
        "test_epochs_that_fail_leave_no_file_process_or_shared_memory",
        "test_cache_lock_is_not_held_by_a_forked_process",
    ),
    24: (
        "test_dry_run_writes_nothing",
        "test_publish_resumes_after_a_kill_without_repeated_uploads",
        "test_card_passes_the_validation_of_the_hub",
        "test_datasets_loads_label_names_and_every_sample",
    ),
    25: (
        "test_token_of_the_argument_precedes_environment_and_file",
        "test_publish_refuses_files_with_a_token",
    ),
}
"""1 kill -9 while preparing; 2 SIGINT and SIGTERM; 3 full disk; 4 cut shard; 5 flipped byte; 6 workers,
locale and umask; 7 changed config; 8 two runs in one folder; 9 clocks; 10 servers; 11 file names;
12 archives; 13 bad media; 14 decoder crashes and hangs; 15 disguised playlists; 16 decoders agree; 17 memory;
18 pickles; 19 commands in URLs and secrets; 20 ranks and workers; 21 resume; 22 cache; 23 fork and spawn;
24 Hub; 25 tokens."""


@cache
def names_of_tests() -> frozenset[str]:
    texts = (path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].rglob("test_*.py"))
    return frozenset(name for text in texts for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE))


def test_security_page_names_files_that_exist() -> None:
    root = Path(__file__).parents[2]
    text = (root / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"(?:tests|benchmarks)/[\w/]+(?:\.py)?", text)
    assert len(named) > 20
    assert [name for name in named if not (root / name).exists()] == []


def test_checklist_has_every_number() -> None:
    assert list(CHECKLIST) == list(range(1, 26))


@pytest.mark.parametrize("number", CHECKLIST)
def test_checklist_names_tests_that_exist(number: int) -> None:
    assert CHECKLIST[number]
    assert set(CHECKLIST[number]) <= names_of_tests()
