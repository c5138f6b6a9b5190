# Run at every build: cmake -DSOURCE_DIR= -DTEMPLATE= -DHEADER= -P write_build_info.cmake
set(MO_GIT_COMMIT "unknown")
# A release archive unpacked inside somebody else's repository must not take over that repository's commit.
if(EXISTS "${SOURCE_DIR}/.git")
  set(ENV{GIT_OPTIONAL_LOCKS} 0)
  # safe.directory: in containers the checkout often belongs to another user than the one who builds.
  execute_process(
    COMMAND git -c "safe.directory=*" describe --always --dirty "--exclude=*" --abbrev=12
    WORKING_DIRECTORY "${SOURCE_DIR}"
    RESULT_VARIABLE failed
    OUTPUT_VARIABLE commit
    ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT failed)
    set(MO_GIT_COMMIT "${commit}")
  endif()
endif()
configure_file("${TEMPLATE}" "${HEADER}" @ONLY)
