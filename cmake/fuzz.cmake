# Fuzz targets: tests/fuzz/fuzz_NAME.c with its inputs in tests/fuzz/corpus/NAME. They are built by clang with libFuzzer
# where it links, else by the project's compiler with tests/fuzz/standalone.c, which mutates the inputs itself; in both
# cases with sanitizers. Included from tests/CMakeLists.txt.
#
# The compiler and flags differ from the project's, hence custom commands instead of targets.

# Rooms that take untrusted bytes, and what they stand on. Only what a fuzz target reaches is linked.
set(MO_FUZZ_ROOMS common config model weights)
set(MO_FUZZ_LIBRARIES -lconfig -ljansson -lpthread -lm)

file(GLOB mo_fuzz_targets CONFIGURE_DEPENDS fuzz/fuzz_*.c)
if(NOT mo_fuzz_targets)
  return()
endif()

file(MAKE_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/fuzz")
find_program(MO_CLANG NAMES clang clang-19 clang-18 clang-17 clang-16 clang-15 clang-14)
mark_as_advanced(MO_CLANG)
set(mo_libfuzzer FALSE)
if(MO_CLANG)
  file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/fuzz/probe.c"
       "#include <stddef.h>\n#include <stdint.h>\n"
       "int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) { return data && size > (size_t)-2; }\n")
  execute_process(
    COMMAND "${MO_CLANG}" -fsanitize=fuzzer,address,undefined probe.c -o probe
    WORKING_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/fuzz"
    RESULT_VARIABLE failed
    OUTPUT_QUIET ERROR_QUIET)
  if(NOT failed)
    set(mo_libfuzzer TRUE)
  endif()
endif()

set(mo_fuzz_flags -std=gnu11 -D_GNU_SOURCE -g -O1 -fno-omit-frame-pointer -fno-sanitize-recover=all)
if(mo_libfuzzer)
  set(mo_fuzz_compiler "${MO_CLANG}")
  set(mo_fuzz_compile -fsanitize=fuzzer-no-link,address,undefined)
  set(mo_fuzz_link -fsanitize=fuzzer,address,undefined)
  set(mo_fuzz_driver "")
  message(STATUS "Fuzzing: libFuzzer (${MO_CLANG})")
else()
  set(mo_fuzz_compiler "${CMAKE_C_COMPILER}")
  set(mo_fuzz_compile -fsanitize=address,undefined)
  set(mo_fuzz_link -fsanitize=address,undefined)
  set(mo_fuzz_driver "${CMAKE_CURRENT_SOURCE_DIR}/fuzz/standalone.c")
  message(STATUS "Fuzzing: built-in mutations (no clang with libFuzzer)")
endif()
set(mo_fuzz_includes
    "${PROJECT_SOURCE_DIR}/include" "${PROJECT_SOURCE_DIR}/src" "${MO_GENERATED_DIR}"
    "$<TARGET_PROPERTY:mo_dependencies,INTERFACE_INCLUDE_DIRECTORIES>")

# Compiles one source; appends the object to the list `objects`.
function(mo_fuzz_object source objects)
  file(RELATIVE_PATH path "${PROJECT_SOURCE_DIR}" "${source}")
  string(REPLACE "/" "_" name "${path}")
  set(mo_file "${CMAKE_CURRENT_BINARY_DIR}/fuzz/${name}.o")
  add_custom_command(
    OUTPUT "${mo_file}"
    COMMAND "${mo_fuzz_compiler}" ${mo_fuzz_flags} ${mo_fuzz_compile} "-I$<JOIN:${mo_fuzz_includes},;-I>" -MD -MF "${mo_file}.d"
            -MT "${mo_file}" -c "${source}" -o "${mo_file}"
    DEPENDS "${source}" mo_build_info
    DEPFILE "${mo_file}.d"
    COMMENT "Building ${path} for fuzzing"
    COMMAND_EXPAND_LISTS VERBATIM)
  set(${objects} ${${objects}} "${mo_file}" PARENT_SCOPE)
endfunction()

list(TRANSFORM MO_FUZZ_ROOMS REPLACE "(.+)" "${PROJECT_SOURCE_DIR}/src/\\1/*.c" OUTPUT_VARIABLE mo_patterns)
file(GLOB mo_fuzz_sources CONFIGURE_DEPENDS ${mo_patterns})
set(mo_fuzz_objects "")
foreach(source ${mo_fuzz_sources})
  mo_fuzz_object("${source}" mo_fuzz_objects)
endforeach()
set(mo_fuzz_archive "${CMAKE_CURRENT_BINARY_DIR}/fuzz/libmo_fuzz.a")
add_custom_command(
  OUTPUT "${mo_fuzz_archive}"
  COMMAND "${CMAKE_COMMAND}" -E rm -f "${mo_fuzz_archive}"
  COMMAND "${CMAKE_AR}" rcs "${mo_fuzz_archive}" ${mo_fuzz_objects}
  DEPENDS ${mo_fuzz_objects}
  VERBATIM)

set(mo_fuzz_programs "")
set(mo_fuzz_driver_object "")
if(mo_fuzz_driver)
  mo_fuzz_object("${mo_fuzz_driver}" mo_fuzz_driver_object)
endif()
set(mo_library_folders ${MO_LIBCONFIG_LIBRARY_DIRS} ${MO_JANSSON_LIBRARY_DIRS})
list(TRANSFORM mo_library_folders PREPEND "-L")
foreach(source ${mo_fuzz_targets})
  get_filename_component(program "${source}" NAME_WE)
  string(REGEX REPLACE "^fuzz_" "" name "${program}")
  set(object "")
  mo_fuzz_object("${source}" object)
  set(path "${CMAKE_CURRENT_BINARY_DIR}/fuzz/${program}")
  add_custom_command(
    OUTPUT "${path}"
    COMMAND "${mo_fuzz_compiler}" ${mo_fuzz_link} ${object} ${mo_fuzz_driver_object} "${mo_fuzz_archive}" ${mo_library_folders}
            ${MO_FUZZ_LIBRARIES} -o "${path}"
    DEPENDS ${object} ${mo_fuzz_driver_object} "${mo_fuzz_archive}"
    VERBATIM)
  list(APPEND mo_fuzz_programs "${path}")

  # New inputs go to the test's own folder; the repository's corpus is only read.
  set(corpus "${CMAKE_CURRENT_SOURCE_DIR}/fuzz/corpus/${name}")
  set(found "${CMAKE_CURRENT_BINARY_DIR}/run/fuzz.${name}/found")
  file(MAKE_DIRECTORY "${found}")
  math(EXPR limit "${MO_FUZZ_SECONDS} + 60")
  mo_add_test(fuzz.${name} ${limit} 1 fuzz "${path}" -max_total_time=${MO_FUZZ_SECONDS} -seed=1 -timeout=10 -rss_limit_mb=1024
              -print_final_stats=1 "${found}" "${corpus}")
endforeach()
add_custom_target(mo_fuzz ALL DEPENDS ${mo_fuzz_programs})
