/* fuse.h - libfuse, in the version of its interface that the driver is written for. */
#ifndef WFS_FUSE_H
#define WFS_FUSE_H

#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>

#endif
