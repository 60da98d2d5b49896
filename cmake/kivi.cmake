# Compiler settings of every target, and the two functions that declare a folder's library and its tests.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)

find_program(KIVI_CCACHE ccache)
if(KIVI_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${KIVI_CCACHE})
endif()

add_library(kivi_flags INTERFACE)
# Contraction is off so that codes are bit-identical on every machine: where a fused multiply-add is wanted it is written.
set(KIVI_CXX_FLAGS -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Werror
                   -ffp-contract=off -fopenmp-simd)
# g++ 12 takes the storage of an empty std::optional for an uninitialised read and, with -O3, an insertion into a vector for
# an overflow.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND KIVI_CXX_FLAGS -Wno-maybe-uninitialized -Wno-stringop-overflow)
else()
  list(APPEND KIVI_CXX_FLAGS -Wno-pass-failed)  # clang vectorises no checked loop of `omp simd`
endif()
# The host's half of a CUDA file is mostly nvcc's own code, which -Wpedantic and -Wconversion do not like.
# 554: nvcc does not see that a conversion is constrained away. fmt 9 would turn its constexpr off, though not consteval.
set(KIVI_CUDA_FLAGS --expt-relaxed-constexpr -Werror=all-warnings -diag-suppress=554 -DFMT_USE_CONSTEXPR=1 -lineinfo
                    -Xcompiler=-Wall,-Wextra,-Wshadow,-ffp-contract=off)
target_compile_options(kivi_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${KIVI_CXX_FLAGS}>"
                                            "$<$<COMPILE_LANGUAGE:CUDA>:${KIVI_CUDA_FLAGS}>")
target_include_directories(kivi_flags INTERFACE ${PROJECT_SOURCE_DIR}/src)
if(KIVI_SANITIZE)
  target_compile_options(kivi_flags INTERFACE -fsanitize=${KIVI_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(kivi_flags INTERFACE -fsanitize=${KIVI_SANITIZE})
endif()

# kivi_library(NAME SOURCES a.cc b.cc DEPS kivi_core ...): the static library of one folder.
function(kivi_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC kivi_flags ${ARG_DEPS})
endfunction()

set(KIVI_TEST_ROOT "${PROJECT_SOURCE_DIR}" CACHE STRING
    "Where tests find their data; . for tests that run in another copy of the sources, from its root")

# kivi_test(NAME SOURCES a_test.cc ... DEPS kivi_core ... [PREFIX p] [FILTER f]): one GoogleTest executable; every case,
# or those that the filter takes, becomes a ctest test, its name after the prefix.
function(kivi_test name)
  if(NOT KIVI_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "PREFIX;FILTER" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE kivi_flags ${ARG_DEPS} GTest::gtest GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE KIVI_SOURCE_DIR="${KIVI_TEST_ROOT}")
  gtest_discover_tests(${name} TEST_PREFIX "${ARG_PREFIX}" TEST_FILTER "${ARG_FILTER}" PROPERTIES TIMEOUT 600 DISCOVERY_TIMEOUT 120)
endfunction()

if(KIVI_FUZZ)
  add_custom_target(fuzzers)
endif()

# kivi_fuzzer(NAME SOURCES a_fuzz.cc DEPS ...): a libFuzzer target, built with clang when KIVI_FUZZ is on.
function(kivi_fuzzer name)
  if(NOT KIVI_FUZZ)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE kivi_flags ${ARG_DEPS})
  target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  target_compile_definitions(${name} PRIVATE KIVI_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  add_dependencies(fuzzers ${name})
endfunction()
