# The building blocks of the build: a room is a library, its LINKS are what it may include.

add_library(palimpsest_options INTERFACE)
target_include_directories(palimpsest_options INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(palimpsest_options INTERFACE  # nvcc has its own: kernels/cuda/CMakeLists.txt
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-sign-compare -Werror -fno-omit-frame-pointer>)
if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
  target_compile_options(palimpsest_options INTERFACE -Wthread-safety)
endif()
if(PALIMPSEST_SANITIZE)
  target_compile_options(palimpsest_options INTERFACE -fsanitize=${PALIMPSEST_SANITIZE} -fno-sanitize-recover=all)
  target_link_options(palimpsest_options INTERFACE -fsanitize=${PALIMPSEST_SANITIZE})
endif()
if(PALIMPSEST_SANITIZE MATCHES "thread")
  # Abseil reads flags of type Duration between fences, which GCC warns that the sanitizer does not follow.
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    target_compile_options(palimpsest_options INTERFACE -Wno-tsan)
  endif()
  # Every program gets mutexes that the sanitizer can see; the file says why.
  add_library(palimpsest_tsan OBJECT ${CMAKE_CURRENT_LIST_DIR}/tsan_mutex.cc)
  target_compile_options(palimpsest_tsan PRIVATE -fsanitize=thread)
  target_sources(palimpsest_options INTERFACE
    $<$<STREQUAL:$<TARGET_PROPERTY:TYPE>,EXECUTABLE>:$<TARGET_OBJECTS:palimpsest_tsan>>)
  target_link_libraries(palimpsest_options INTERFACE absl::synchronization absl::time)
endif()

# palimpsest_room(NAME SOURCES file... [LINKS library...])
function(palimpsest_room name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  # How we compile is no business of who links an installed room.
  target_link_libraries(${name} PUBLIC $<BUILD_INTERFACE:palimpsest_options> Threads::Threads ${ARG_LINKS})
endfunction()

# palimpsest_suppress(TEST): what sanitizers see in libraries that are not ours is not the test's fault.
function(palimpsest_suppress name)
  if(PALIMPSEST_SANITIZE MATCHES "thread")
    set_tests_properties(${name} PROPERTIES ENVIRONMENT
      "TSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/cmake/tsan_suppressions.txt")
  elseif(PALIMPSEST_SANITIZE MATCHES "address")
    set_tests_properties(${name} PROPERTIES ENVIRONMENT
      "LSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/cmake/lsan_suppressions.txt")
  endif()
endfunction()

# palimpsest_compiles_tests(TARGET library...): of what has a test's sources.
function(palimpsest_compiles_tests target)
  target_link_libraries(${target} PRIVATE palimpsest_options ${ARGN} GTest::gmock)
  # What is tested is in libraries; a test's own code is compiled a third sooner so.
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
  if(PALIMPSEST_CUDA)
    # It may be built on one machine and run on another: its data is looked for from the root of a checkout.
    target_compile_definitions(${target} PRIVATE PALIMPSEST_SOURCE_DIR=".")
  else()
    target_compile_definitions(${target} PRIVATE PALIMPSEST_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  endif()
endfunction()

# palimpsest_test(NAME SOURCES file... [LINKS library...] [LABELS label...] [TIMEOUT seconds]): one GoogleTest binary.
function(palimpsest_test name)
  if(NOT PALIMPSEST_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LINKS;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  if(PALIMPSEST_SANITIZE)
    math(EXPR ARG_TIMEOUT "3 * ${ARG_TIMEOUT}")
  endif()
  add_executable(${name} ${ARG_SOURCES})
  palimpsest_compiles_tests(${name} ${ARG_LINKS})
  target_link_libraries(${name} PRIVATE GTest::gtest_main)
  if(PALIMPSEST_CUDA)
    add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  else()
    add_test(NAME ${name} COMMAND ${name})
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
  palimpsest_suppress(${name})
endfunction()

# palimpsest_device_test(... [EMULATED filter] [NOT_ON_PROCESSOR]), as palimpsest_test: the same sources, compiled once,
# as NAME, on the processor, and as NAME_on_device. On an emulated device, which is slow, only tests that the filter
# names run by themselves.
function(palimpsest_device_test name)
  if(NOT PALIMPSEST_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "NOT_ON_PROCESSOR" "EMULATED" "SOURCES;LINKS" ${ARGN})
  add_library(${name}_compiled OBJECT ${ARG_SOURCES})
  palimpsest_compiles_tests(${name}_compiled ${ARG_LINKS})
  set(compiled $<TARGET_OBJECTS:${name}_compiled>)
  if(NOT ARG_NOT_ON_PROCESSOR)
    palimpsest_test(${name} SOURCES ${compiled} LINKS ${ARG_LINKS} test_processor)
  endif()
  palimpsest_test(${name}_on_device SOURCES ${compiled} LINKS ${ARG_LINKS} test_device LABELS device TIMEOUT 900)
  if(PALIMPSEST_CUDA AND PALIMPSEST_BUILD_TESTS)
    add_dependencies(cuda_home ${name}_on_device)
  endif()
  if(ARG_EMULATED AND NOT PALIMPSEST_CUDA)
    set_property(TEST ${name}_on_device APPEND PROPERTY ENVIRONMENT "GTEST_FILTER=${ARG_EMULATED}")
  endif()
endfunction()

# palimpsest_fuzzer(NAME LINKS library...): the target in NAME.cc (tests/fuzz/fuzz.h). With PALIMPSEST_FUZZ a libFuzzer
# program; else a test that feeds it the files of corpus/NAME. Both are the program fuzz_NAME.
function(palimpsest_fuzzer name)
  cmake_parse_arguments(ARG "" "" "LINKS" ${ARGN})
  set(program fuzz_${name})
  if(PALIMPSEST_FUZZ)
    add_executable(${program} EXCLUDE_FROM_ALL ${name}.cc libfuzzer.cc)
    target_link_options(${program} PRIVATE -fsanitize=fuzzer)
    add_dependencies(fuzzers ${program})
  else()
    add_executable(${program} ${name}.cc replay.cc)
    add_test(NAME ${program} COMMAND ${program} ${CMAKE_CURRENT_SOURCE_DIR}/corpus/${name})
    set_tests_properties(${program} PROPERTIES TIMEOUT 300 LABELS fuzz)
    palimpsest_suppress(${program})
    if(PALIMPSEST_SANITIZE MATCHES "thread")
      # What a target keeps is never destroyed, with it the threads of a server's tasks that nobody has joined yet.
      get_test_property(${program} ENVIRONMENT environment)
      set_tests_properties(${program} PROPERTIES ENVIRONMENT "${environment}:report_thread_leaks=0")
    endif()
  endif()
  target_link_libraries(${program} PRIVATE palimpsest_options ${ARG_LINKS})
endfunction()
