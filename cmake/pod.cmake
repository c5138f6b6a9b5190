# The program moe-pod. Where it is built alone and there is no libconfig, src/pod/libconfig reads the configs.

if(NOT MO_LIBCONFIG_FOUND)
  target_sources(mo_core PRIVATE "${PROJECT_SOURCE_DIR}/src/pod/libconfig/libconfig.c"
                                 "${PROJECT_SOURCE_DIR}/src/pod/libconfig/scanner.c")
  target_include_directories(mo_core PUBLIC "${PROJECT_SOURCE_DIR}/src/pod/libconfig")
  message(STATUS "libconfig: not found, the bundled subset reads the configs")
endif()

file(GLOB mo_pod_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/src/pod/*.c")
list(FILTER mo_pod_sources EXCLUDE REGEX "/main\\.c$")
add_library(mo_pod STATIC ${mo_pod_sources})
target_include_directories(mo_pod PUBLIC "${PROJECT_SOURCE_DIR}/src")
target_link_libraries(mo_pod PUBLIC mo_core)
add_dependencies(mo_pod mo_build_info)

add_executable(moe-pod "${PROJECT_SOURCE_DIR}/src/pod/main.c")
target_link_libraries(moe-pod PRIVATE mo_pod)

install(TARGETS moe-pod RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
