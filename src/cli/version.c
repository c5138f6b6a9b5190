/* --version: what this program was built from and with. */
#include <cblas.h>
#include <hdf5.h>
#include <jansson.h>
#include <libconfig.h>
#include <mpi.h>
#include <string.h>

#include "cli.h"
#include "moe_outliers/build_info.h"

/* MPI's own text goes on with the date and place of its build. Allowed before MPI_Init; nothing is started. */
static void print_mpi(FILE *out) {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  if (MPI_Get_library_version(text, &length) != MPI_SUCCESS) snprintf(text, sizeof text, "unknown MPI");
  text[strcspn(text, ",\n")] = '\0';
  fprintf(out, "  %s\n", text);
}

void mo_cli_print_version(FILE *out) {
  unsigned major = 0, minor = 0, release = 0;
  fprintf(out, "moe-outliers %s\n", MO_VERSION);
  fprintf(out, "commit:   %s\n", MO_GIT_COMMIT);
  fprintf(out, "compiler: %s, %s\n", MO_COMPILER, MO_BUILD_TYPE);
  fprintf(out, "flags:    %s\n", MO_C_FLAGS);
  fprintf(out, "backends: %s\n", MO_BACKENDS);
  fprintf(out, "libraries:\n");
  print_mpi(out);
  if (H5get_libversion(&major, &minor, &release) >= 0) fprintf(out, "  HDF5 %u.%u.%u\n", major, minor, release);
  fprintf(out, "  %s\n", openblas_get_config());
  fprintf(out, "  libconfig %d.%d.%d\n", LIBCONFIG_VER_MAJOR, LIBCONFIG_VER_MINOR, LIBCONFIG_VER_REVISION);
  fprintf(out, "  jansson %s\n", jansson_version_str());
}
