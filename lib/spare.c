#include "lib/spare.h"

#include <errno.h>
#include <string.h>

#include "lib/datafile_state.h"
#include "lib/store_priv.h"

/* The last one that was kept: its inode is still in the disk's caches. */
static bool pop(struct wfs_store *s, uint64_t *ret_id)
{
	bool found;

	pthread_mutex_lock(&s->spare_lock);
	found = s->n_spares > 0;
	if (found)
		*ret_id = s->spares[--s->n_spares];
	pthread_mutex_unlock(&s->spare_lock);
	return found;
}

int wfs_spare_take(struct wfs_store *s, uint64_t state, uint64_t *ret_id)
{
	int ret;

	if (!pop(s, ret_id))
		return 0;
	ret = wfs_db_run(&s->db, WFS_Q_DATA_STATE, "ii", state, *ret_id);
	if (ret)
		return ret; /* it stays doomed: the collector finds it */
	return wfs_db_changes(&s->db) == 1 ? 1 : -ESTALE;
}

static bool has_room(struct wfs_store *s)
{
	bool room;

	pthread_mutex_lock(&s->spare_lock);
	room = s->keeps_spares && s->n_spares < WFS_SPARES;
	pthread_mutex_unlock(&s->spare_lock);
	return room;
}

bool wfs_spare_keep(struct wfs_store *s, struct wfs_datafile *df)
{
	bool kept;

	if (!has_room(s) || wfs_datafile_empty(&s->datafiles, df) != 0)
		return false;
	pthread_mutex_lock(&s->spare_lock);
	kept = s->keeps_spares && s->n_spares < WFS_SPARES;
	if (kept)
		s->spares[s->n_spares++] = df->id;
	pthread_mutex_unlock(&s->spare_lock);
	return kept;
}

size_t wfs_spare_list(struct wfs_store *s, uint64_t ret_ids[WFS_SPARES])
{
	size_t n;

	pthread_mutex_lock(&s->spare_lock);
	n = s->n_spares;
	memcpy(ret_ids, s->spares, n * sizeof(*ret_ids));
	pthread_mutex_unlock(&s->spare_lock);
	return n;
}

void wfs_spare_stop(struct wfs_store *s)
{
	pthread_mutex_lock(&s->spare_lock);
	s->keeps_spares = false;
	s->n_spares = 0;
	pthread_mutex_unlock(&s->spare_lock);
}
