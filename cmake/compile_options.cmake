# Language level, warnings and code generation, as the interface target mo_options.
include(CheckCCompilerFlag)

set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS ON)

# Without contraction a multiply and an add round separately, so that every preset computes the same numbers outside
# the BLAS library.
set(mo_flags -Wall -Wextra -Wshadow -ffp-contract=off)
if(MO_WERROR)
  list(APPEND mo_flags -Werror)
endif()
if(MO_NATIVE)
  list(APPEND mo_flags -march=native)
  # Valgrind knows no AVX-512, and the BLAS library chooses its own kernels at run time.
  check_c_compiler_flag(-mno-avx512f MO_HAVE_NO_AVX512F)
  if(MO_HAVE_NO_AVX512F)
    list(APPEND mo_flags -mno-avx512f)
  endif()
endif()
if(MO_SANITIZE)
  list(APPEND mo_flags -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
endif()

add_library(mo_options INTERFACE)
target_compile_options(mo_options INTERFACE "$<$<COMPILE_LANGUAGE:C>:${mo_flags}>")
target_compile_definitions(mo_options INTERFACE _GNU_SOURCE)
if(MO_SANITIZE)
  target_link_options(mo_options INTERFACE -fsanitize=address,undefined)
endif()

# For --version.
string(TOUPPER "${CMAKE_BUILD_TYPE}" mo_build_type)
string(JOIN " " MO_C_FLAGS ${CMAKE_C_FLAGS} ${CMAKE_C_FLAGS_${mo_build_type}} -std=gnu11 ${mo_flags})
set(MO_COMPILER "${CMAKE_C_COMPILER_ID} ${CMAKE_C_COMPILER_VERSION}")
