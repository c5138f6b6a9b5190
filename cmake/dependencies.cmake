# Finds every library, then reports all missing ones in a single error. Result: the interface targets
# mo_core_dependencies of what both programs share, which is all that moe-pod needs, mo_dependencies of moe-outliers
# when it is built, and mo_test_dependencies with cmocka when tests are built. MO_LIBCONFIG_FOUND is false where moe-pod,
# built alone, must do without libconfig.
set(mo_missing "")

# One line of the report: what, the Debian and Ubuntu package, the Spack package.
function(mo_report_missing what apt spack)
  set(mo_missing "${mo_missing}  ${what}: apt install ${apt}; spack install ${spack}\n" PARENT_SCOPE)
endfunction()

add_library(mo_core_dependencies INTERFACE)
add_library(mo_dependencies INTERFACE)

find_package(PkgConfig QUIET)
if(NOT PKG_CONFIG_FOUND)
  mo_report_missing("pkg-config" pkg-config pkgconf)
endif()

# Finds one library by pkg-config and links it to `target`.
macro(mo_find_by_pkg_config target name module apt spack)
  if(PKG_CONFIG_FOUND)
    pkg_check_modules(${name} QUIET IMPORTED_TARGET ${module})
  endif()
  if(${name}_FOUND)
    target_link_libraries(${target} INTERFACE PkgConfig::${name})
  else()
    mo_report_missing("${module}" "${apt}" "${spack}")
  endif()
endmacro()

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
target_link_libraries(mo_core_dependencies INTERFACE Threads::Threads m)
mo_find_by_pkg_config(mo_core_dependencies MO_JANSSON jansson libjansson-dev jansson)
mo_find_by_pkg_config(mo_core_dependencies MO_CURL libcurl libcurl4-openssl-dev curl)
if(NOT MO_PROGRAMS STREQUAL "moe-pod")
  mo_find_by_pkg_config(mo_core_dependencies MO_LIBCONFIG libconfig libconfig-dev libconfig)
elseif(PKG_CONFIG_FOUND)
  pkg_check_modules(MO_LIBCONFIG QUIET IMPORTED_TARGET libconfig)
  if(MO_LIBCONFIG_FOUND)
    target_link_libraries(mo_core_dependencies INTERFACE PkgConfig::MO_LIBCONFIG)
  endif()
endif()
target_link_libraries(mo_dependencies INTERFACE mo_core_dependencies)
if(NOT MO_PROGRAMS STREQUAL "moe-pod")
  include(engine_dependencies)
endif()

if(BUILD_TESTING)
  add_library(mo_test_dependencies INTERFACE)
  mo_find_by_pkg_config(mo_test_dependencies MO_CMOCKA cmocka libcmocka-dev "cmocka (or -DBUILD_TESTING=OFF)")
endif()

if(mo_missing)
  message(FATAL_ERROR "Missing dependencies:\n${mo_missing}scripts/setup installs them on Debian and Ubuntu; "
                      "on clusters use spack.yaml or the site's modules, with their folders in PKG_CONFIG_PATH.")
endif()
