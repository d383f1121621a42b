/* Ranges that nobody is given: lib/datafile.h. */
#include <string.h>

#include "lib/datafile.h"

static bool has_range(const struct wfs_datafile *df, const struct wfs_bad_range *range)
{
	for (size_t i = 0; i < df->n_bad; i++)
		if (memcmp(&df->bad[i], range, sizeof(*range)) == 0)
			return true;
	return df->has_bad && !df->bad;
}

static void add_range(struct wfs_datafile *df, const struct wfs_bad_range *range)
{
	struct wfs_bad_range *grown;

	if (has_range(df, range))
		return;
	grown = reallocarray(df->bad, df->n_bad + 1, sizeof(*grown));
	if (grown) {
		df->bad = grown;
		df->bad[df->n_bad++] = *range;
	} else {
		free(df->bad);
		df->bad = NULL;
		df->n_bad = 0;
	}
	atomic_store(&df->has_bad, true);
}

void wfs_datafile_note_bad(struct wfs_datafiles *t, struct wfs_datafile *df)
{
	for (size_t i = 0; i < t->n_bad; i++)
		if (t->bad[i].data_file == df->id)
			add_range(df, &t->bad[i]);
}

void wfs_datafiles_set_bad(struct wfs_datafiles *t, struct wfs_bad_range *ranges, size_t n)
{
	pthread_mutex_lock(&t->lock);
	free(t->bad);
	t->bad = ranges;
	t->n_bad = n;
	for (size_t i = 0; i < n; i++) {
		struct wfs_datafile *df = t->buckets[ranges[i].data_file % WFS_DATAFILE_BUCKETS];

		for (; df; df = df->next)
			if (df->id == ranges[i].data_file)
				add_range(df, &ranges[i]);
	}
	pthread_mutex_unlock(&t->lock);
}

static size_t remove_range(struct wfs_bad_range *list, size_t n, uint64_t data_file, uint64_t offset)
{
	size_t left = 0;

	for (size_t i = 0; i < n; i++)
		if (list[i].data_file != data_file || list[i].offset != offset)
			list[left++] = list[i];
	return left;
}

void wfs_datafiles_clear_bad(struct wfs_datafiles *t, uint64_t data_file, uint64_t offset)
{
	struct wfs_datafile *df;

	pthread_mutex_lock(&t->lock);
	t->n_bad = remove_range(t->bad, t->n_bad, data_file, offset);
	for (df = t->buckets[data_file % WFS_DATAFILE_BUCKETS]; df; df = df->next) {
		if (df->id != data_file || !df->bad)
			continue;
		df->n_bad = remove_range(df->bad, df->n_bad, data_file, offset);
		atomic_store(&df->has_bad, df->n_bad > 0);
	}
	pthread_mutex_unlock(&t->lock);
}

bool wfs_datafile_is_bad(struct wfs_datafiles *t, struct wfs_datafile *df, uint64_t offset,
	uint64_t length)
{
	bool is_bad;

	if (!atomic_load(&df->has_bad))
		return false;
	pthread_mutex_lock(&t->lock);
	is_bad = !df->bad;
	for (size_t i = 0; i < df->n_bad && !is_bad; i++)
		is_bad = offset < df->bad[i].offset + df->bad[i].length &&
			 df->bad[i].offset < offset + length;
	pthread_mutex_unlock(&t->lock);
	return is_bad;
}
