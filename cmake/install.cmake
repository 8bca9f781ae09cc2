# `cmake --install`: the programs, the C++ client as the CMake package `palimpsest`, and the protos.
#
#   bin/                           palimpsest, palimpsest-server
#   include/palimpsest/            the client's public headers; below proto/ what protoc made of the protos
#   lib/                           libpalimpsest_client.a, libpalimpsest_proto.a
#   lib/cmake/palimpsest/          the package: palimpsest::client, palimpsest::proto
#   share/palimpsest/proto/        the protos, with those of google/ that they import
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# A folder of its own: other packages may have a google/rpc/status.pb.h, too.
set(PALIMPSEST_INSTALL_PROTO_HEADERS ${CMAKE_INSTALL_INCLUDEDIR}/palimpsest/proto)
set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/palimpsest)

# palimpsest_install_library(NAME [HEADERS file...]): the target NAME as palimpsest::NAME.
function(palimpsest_install_library name)
  cmake_parse_arguments(ARG "" "" "HEADERS" ${ARGN})
  set_target_properties(${name} PROPERTIES OUTPUT_NAME palimpsest_${name})
  install(TARGETS ${name} EXPORT palimpsest INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  if(ARG_HEADERS)
    install(FILES ${ARG_HEADERS} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/palimpsest)
  endif()
endfunction()

install(EXPORT palimpsest NAMESPACE palimpsest:: FILE palimpsest-targets.cmake DESTINATION ${package_folder})
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/palimpsest-config.cmake.in
  ${PROJECT_BINARY_DIR}/palimpsest-config.cmake INSTALL_DESTINATION ${package_folder})
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/palimpsest-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/palimpsest-config.cmake ${PROJECT_BINARY_DIR}/palimpsest-config-version.cmake
        DESTINATION ${package_folder})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
