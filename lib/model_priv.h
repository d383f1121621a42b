/* model_priv.h - between lib/model.c and lib/model_view.c. */
#ifndef WFS_MODEL_PRIV_H
#define WFS_MODEL_PRIV_H

#include "lib/model.h"

void wfs_cuts_free(struct wfs_cut *cuts); /* a list; NULL is allowed */

#endif
