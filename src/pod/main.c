#include "pod/cli.h"

int main(int argc, char **argv) { return pod_main(argc, argv); }
