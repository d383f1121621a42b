/*
 * size_text.h - sizes as people write them: "500MB", "5GB", "1.5GiB".
 *
 * The units of huggingface_hub and transformers: KB, MB, GB, TB and PB are powers
 * of 1000; KiB, MiB, GiB, TiB and PiB powers of 1024. No unit: bytes. Case does not
 * matter. A fraction is rounded down to bytes.
 */
#ifndef WFS_SIZE_TEXT_H
#define WFS_SIZE_TEXT_H

#include "lib/base.h"

/* False for anything else, for a negative size and for more than INT64_MAX; *ret is not touched then. */
bool wfs_size_parse(const char *text, uint64_t *ret);

#endif
