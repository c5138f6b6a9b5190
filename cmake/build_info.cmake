# Generates moe_outliers/build_info.h. Everything but the commit is filled in when configuring; the commit is looked up at
# every build, and the header is rewritten only when it changes, so that only its users are compiled again.
set(MO_GENERATED_DIR "${PROJECT_BINARY_DIR}/generated")

string(REPLACE "\\" "\\\\" mo_escaped_flags "${MO_C_FLAGS}")
string(REPLACE "\"" "\\\"" MO_C_FLAGS "${mo_escaped_flags}")
set(MO_GIT_COMMIT "@MO_GIT_COMMIT@")
configure_file("${PROJECT_SOURCE_DIR}/src/build_info.h.in" "${PROJECT_BINARY_DIR}/build_info.h.in" @ONLY)

add_custom_target(
  mo_build_info
  COMMAND
    "${CMAKE_COMMAND}" "-DSOURCE_DIR=${PROJECT_SOURCE_DIR}" "-DTEMPLATE=${PROJECT_BINARY_DIR}/build_info.h.in"
    "-DHEADER=${MO_GENERATED_DIR}/moe_outliers/build_info.h" -P "${PROJECT_SOURCE_DIR}/cmake/write_build_info.cmake"
  BYPRODUCTS "${MO_GENERATED_DIR}/moe_outliers/build_info.h"
  COMMENT "Looking up the git commit"
  VERBATIM)
