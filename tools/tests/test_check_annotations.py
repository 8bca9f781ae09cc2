import pathlib

import check_annotations


def test_sources_that_annotate_or_include_what_does(tmp_path: pathlib.Path) -> None:
    (tmp_path / "locked.h").write_text("int count_ ABSL_GUARDED_BY(mu_);\n")
    (tmp_path / "plain.h").write_text("int count_;  // absl::Mutex\n")
    (tmp_path / "locked.cc").write_text('#include "locked.h"\n')
    (tmp_path / "itself.cc").write_text("void F() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);\n")
    (tmp_path / "plain.cc").write_text('#include "plain.h"\n#include "elsewhere.h"\n')
    sources = ["locked.cc", "itself.cc", "plain.cc"]
    assert check_annotations.annotated(sources, tmp_path) == ["locked.cc", "itself.cc"]
