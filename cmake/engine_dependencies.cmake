# Libraries of moe-outliers alone, added to mo_dependencies: OpenMP, MPI, parallel HDF5, BLAS. Included from
# dependencies.cmake.
include(CheckCSourceCompiles)

find_package(OpenMP QUIET COMPONENTS C)
if(OpenMP_C_FOUND)
  target_link_libraries(mo_dependencies INTERFACE OpenMP::OpenMP_C)
elseif(CMAKE_C_COMPILER_ID MATCHES "Clang")
  mo_report_missing("OpenMP for Clang" libomp-dev "llvm-openmp")
else()
  mo_report_missing("OpenMP for C" gcc gcc)
endif()

find_package(MPI QUIET COMPONENTS C)
if(MPI_C_FOUND)
  target_link_libraries(mo_dependencies INTERFACE MPI::MPI_C)
else()
  mo_report_missing("MPI for C" "libopenmpi-dev openmpi-bin" openmpi)
endif()

# Is the HDF5 behind the given link libraries and include folders built with MPI?
function(mo_check_parallel_hdf5 result)
  cmake_parse_arguments(arg "" "" "LIBRARIES;INCLUDES" ${ARGN})
  set(CMAKE_REQUIRED_QUIET ON)
  set(CMAKE_REQUIRED_LIBRARIES ${arg_LIBRARIES} MPI::MPI_C)
  set(CMAKE_REQUIRED_INCLUDES ${arg_INCLUDES})
  unset(MO_HDF5_IS_PARALLEL CACHE)
  check_c_source_compiles(
    "#include <hdf5.h>
#ifndef H5_HAVE_PARALLEL
#error serial
#endif
int main(void) { return H5open() + (int)H5Pset_fapl_mpio(0, MPI_COMM_SELF, MPI_INFO_NULL); }"
    MO_HDF5_IS_PARALLEL)
  set(${result} ${MO_HDF5_IS_PARALLEL} PARENT_SCOPE)
  unset(MO_HDF5_IS_PARALLEL CACHE)
endfunction()

# pkg-config first (Debian keeps serial and parallel HDF5 side by side under different names), then CMake's module, which
# asks h5pcc. HDF5_ROOT goes straight to the module.
set(mo_hdf5_ok FALSE)
set(mo_hdf5_serial FALSE)
if(MPI_C_FOUND AND PKG_CONFIG_FOUND AND NOT HDF5_ROOT AND NOT DEFINED ENV{HDF5_ROOT})
  foreach(module hdf5-openmpi hdf5-mpich hdf5-mpi hdf5)
    string(MAKE_C_IDENTIFIER "MO_${module}" name)
    pkg_check_modules(${name} QUIET IMPORTED_TARGET ${module})
    if(${name}_FOUND)
      mo_check_parallel_hdf5(mo_hdf5_ok LIBRARIES PkgConfig::${name})
      if(mo_hdf5_ok)
        target_link_libraries(mo_dependencies INTERFACE PkgConfig::${name})
        message(STATUS "Found parallel HDF5: ${module} ${${name}_VERSION}")
        break()
      endif()
      set(mo_hdf5_serial TRUE)
    endif()
  endforeach()
endif()
if(MPI_C_FOUND AND NOT mo_hdf5_ok)
  set(HDF5_PREFER_PARALLEL ON)
  find_package(HDF5 QUIET COMPONENTS C)
  if(HDF5_FOUND)
    mo_check_parallel_hdf5(mo_hdf5_ok LIBRARIES ${HDF5_C_LIBRARIES} INCLUDES ${HDF5_C_INCLUDE_DIRS})
    if(mo_hdf5_ok)
      target_link_libraries(mo_dependencies INTERFACE ${HDF5_C_LIBRARIES})
      target_include_directories(mo_dependencies SYSTEM INTERFACE ${HDF5_C_INCLUDE_DIRS})
      message(STATUS "Found parallel HDF5: ${HDF5_VERSION}")
    else()
      set(mo_hdf5_serial TRUE)
    endif()
  endif()
endif()
if(NOT mo_hdf5_ok)
  if(mo_hdf5_serial)
    mo_report_missing("HDF5 with MPI (only a serial HDF5 was found)" libhdf5-openmpi-dev "hdf5+mpi")
  else()
    mo_report_missing("HDF5 with MPI" libhdf5-openmpi-dev "hdf5+mpi")
  endif()
endif()

mo_find_by_pkg_config(mo_dependencies MO_OPENBLAS openblas libopenblas-dev openblas)
