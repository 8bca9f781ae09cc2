import pathlib

import tidy

DIFF = """\
diff --git a/server/a.cc b/server/a.cc
--- a/server/a.cc
+++ b/server/a.cc
@@ -3 +3 @@ int F() {
-  return 1;
+  return 2;
@@ -9,2 +9,0 @@ int G() {
-  // one
-  // two
@@ -20,0 +19,3 @@ int H() {
+  // one
+  // two
+  // three
diff --git a/server/gone.cc b/server/gone.cc
--- a/server/gone.cc
+++ /dev/null
@@ -1,2 +0,0 @@
-// one
-// two
"""


def test_lines_that_are_there_since_a_change() -> None:
    assert tidy.changed_lines(DIFF) == {"server/a.cc": [(3, 3), (19, 21)]}


def test_a_header_is_read_by_its_own_source_or_by_one_that_is_read_anyway(tmp_path: pathlib.Path) -> None:
    includes = {"a.cc": ["a.h", "c.h"], "b.cc": ["b.h", "c.h"], "d.cc": ["d.h"]}
    for source, headers in includes.items():
        (tmp_path / source).write_text("".join(f'#include "{header}"\n' for header in headers))
    sources = list(includes)
    assert tidy.readers(["b.h"], sources, tmp_path) == ["b.cc"]
    assert tidy.readers(["b.cc", "c.h"], sources, tmp_path) == ["b.cc"]
    assert tidy.readers(["c.h"], sources, tmp_path) == ["a.cc"]
    assert tidy.readers(["nobody.h", "not_built.cc"], sources, tmp_path) == []
