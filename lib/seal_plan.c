#include "lib/seal_plan.h"

#include <errno.h>
#include <string.h>

#include "lib/npy.h"
#include "lib/object.h"
#include "lib/safetensors.h"
#include "lib/seal.h"

/* ---- splitting ---- */

static void add_piece(struct wfs_plan *p, uint64_t offset, uint64_t length)
{
	p->pieces[p->n++] = (struct wfs_plan_piece){ .offset = offset, .length = length,
		.last_compared = -1, .same_as = WFS_PLAN_NONE, .next = WFS_PLAN_NONE };
}

static int split_opaque(struct wfs_plan *p)
{
	p->pieces = calloc(1, sizeof(*p->pieces));
	if (!p->pieces)
		return -ENOMEM;
	add_piece(p, 0, p->size);
	return 0;
}

/* The tensors of a valid file follow each other without a gap: the header's rules say so. */
static int split_tensors(struct wfs_plan *p, const struct wfs_safetensors *st)
{
	uint64_t data_at = WFS_SAFETENSORS_PREFIX + st->header_len;

	p->pieces = calloc(st->n_tensors + 1, sizeof(*p->pieces));
	if (!p->pieces)
		return -ENOMEM;
	add_piece(p, 0, data_at);
	for (size_t i = 0; i < st->n_tensors; i++) {
		const struct wfs_safetensors_tensor *t = &st->tensors[i];

		if (t->end > t->begin)
			add_piece(p, data_at + t->begin, t->end - t->begin);
	}
	return 0;
}

/* An array is an object of its own, so that it is the same in an .npy file and in a shard. */
static int split_npy(struct wfs_plan *p, const struct wfs_npy *npy)
{
	p->pieces = calloc(2, sizeof(*p->pieces));
	if (!p->pieces)
		return -ENOMEM;
	add_piece(p, 0, npy->data_at);
	if (npy->data_len)
		add_piece(p, npy->data_at, npy->data_len);
	return 0;
}

/* 1 if the content is one array and nothing else. */
static int find_npy(struct wfs_plan *p, struct wfs_npy *ret)
{
	WFS_AUTO_FREE uint8_t *buf = NULL;
	uint8_t head[WFS_NPY_PREFIX];
	ssize_t n = wfs_content_read(p->content, head, sizeof(head), 0);
	uint64_t need;

	if (n < (ssize_t)sizeof(head) || memcmp(head, WFS_NPY_MAGIC, strlen(WFS_NPY_MAGIC)) != 0)
		return WFS_MIN(n, 0);
	need = wfs_npy_need(head, sizeof(head), p->size);
	buf = malloc(need);
	if (!buf)
		return -ENOMEM;
	n = wfs_content_read(p->content, buf, need, 0);
	if (n < 0)
		return (int)n;
	return (uint64_t)n == need && wfs_npy_parse(buf, p->size, ret, NULL) == 0;
}

static int split_other(struct wfs_plan *p)
{
	struct wfs_npy npy;
	int found = find_npy(p, &npy);

	if (found < 0)
		return found;
	return found ? split_npy(p, &npy) : split_opaque(p);
}

int wfs_plan_split(struct wfs_plan *p, struct wfs_file *f, struct wfs_content *content,
	uint64_t size)
{
	WFS_AUTO_FREE uint8_t *header = NULL;
	struct wfs_safetensors st;
	int ret;

	memset(p, 0, sizeof(*p));
	p->file = f;
	p->content = wfs_content_ref(content);
	p->size = size;
	p->buf = malloc(WFS_MIN(size, WFS_PLAN_BUFFER));
	p->buf2 = malloc(WFS_MIN(size, WFS_PLAN_BUFFER));
	if (!p->buf || !p->buf2)
		return -ENOMEM;
	ret = wfs_file_header(f, &header, &st, NULL);
	if (ret)
		return ret;
	if (st.verdict == WFS_SAFETENSORS_VALID && st.n_tensors <= WFS_MAX_PIECES &&
		WFS_SAFETENSORS_PREFIX + st.header_len + st.data_len == size)
		ret = split_tensors(p, &st);
	else
		ret = split_other(p);
	wfs_safetensors_release(&st);
	return ret;
}

void wfs_plan_release(struct wfs_plan *p)
{
	wfs_content_unref(p->content);
	free(p->pieces);
	free(p->buf);
	free(p->buf2);
}

/* ---- hashing ---- */

/* As wfs_content_read, but a hole is not read: it would fill the page cache with zeros. */
static ssize_t read_sparsely(struct wfs_content *c, void *buf, size_t len, uint64_t offset)
{
	int64_t data = wfs_content_seek(c, offset, SEEK_DATA);

	if (data == -ENXIO || data >= (int64_t)(offset + len)) {
		memset(buf, 0, len);
		return (ssize_t)len;
	}
	return wfs_content_read(c, buf, len, offset);
}

static int read_exactly(struct wfs_content *c, void *buf, size_t len, uint64_t offset)
{
	ssize_t n = read_sparsely(c, buf, len, offset);

	if (n < 0)
		return (int)n;
	return (size_t)n == len ? 0 : -EBUSY; /* it became shorter: a writer is there */
}

static int hash_piece(struct wfs_plan *p, struct wfs_plan_piece *piece)
{
	struct wfs_hasher h;

	wfs_hasher_init(&h, p->file->store->options.digest_bits);
	for (uint64_t done = 0; done < piece->length;) {
		size_t part = WFS_MIN(WFS_PLAN_BUFFER, piece->length - done);
		int ret = wfs_plan_must_stop(p) ? -EBUSY
				       : read_exactly(p->content, p->buf, part, piece->offset + done);

		if (ret)
			return ret;
		wfs_hasher_update(&h, p->buf, part);
		done += part;
	}
	piece->digest = wfs_hasher_final(&h);
	return 0;
}

int wfs_plan_hash(struct wfs_plan *p)
{
	for (size_t i = 0; i < p->n; i++) {
		int ret = hash_piece(p, &p->pieces[i]);

		if (ret)
			return ret;
	}
	return 0;
}

/* ---- matching ---- */

/* 1 if [offset, +length) of the file being sealed equals [other_at, +length) of `other`. */
static int is_equal(struct wfs_plan *p, const struct wfs_plan_piece *piece,
	struct wfs_content *other, uint64_t other_at)
{
	for (uint64_t done = 0; done < piece->length;) {
		size_t part = WFS_MIN(WFS_PLAN_BUFFER, piece->length - done);
		int ret = wfs_plan_must_stop(p) ? -EBUSY
				       : read_exactly(p->content, p->buf, part, piece->offset + done);
		ssize_t n;

		if (ret)
			return ret;
		/* What cannot be read cannot be shared; it is no error of this file. */
		n = wfs_content_read(other, p->buf2, part, other_at + done);
		if (n != (ssize_t)part || memcmp(p->buf, p->buf2, part) != 0)
			return 0;
		done += part;
	}
	return 1;
}

/* The next object that may be equal, and its bytes. 1, 0, -errno. */
static int next_candidate(struct wfs_store *s, const struct wfs_plan_piece *piece,
	struct wfs_object *object, struct wfs_content **ret)
{
	int found = wfs_db_begin_read(&s->db);

	if (found)
		return found;
	found = wfs_object_find(&s->db, &piece->digest, piece->length, piece->last_compared, object);
	if (found > 0) {
		int err = wfs_content_of_object(&s->db, &s->datafiles, object, ret);

		found = err ? err : 1;
	}
	return wfs_db_end(&s->db, found);
}

/*
 * Bytes that have its digest are not what the object has: 1 if that is since it does not have
 * its own any more, and not since two contents have one digest.
 */
static int is_damaged(struct wfs_plan *p, const struct wfs_plan_piece *piece,
	struct wfs_content *other)
{
	struct wfs_digest have;
	struct wfs_hasher h;

	wfs_hasher_init(&h, p->file->store->options.digest_bits);
	for (uint64_t done = 0; done < piece->length;) {
		size_t part = WFS_MIN(WFS_PLAN_BUFFER, piece->length - done);
		ssize_t n = wfs_plan_must_stop(p) ? -EBUSY : wfs_content_read(other, p->buf2, part, done);

		if (n == -EBUSY)
			return -EBUSY;
		if (n != (ssize_t)part)
			return 1;
		wfs_hasher_update(&h, p->buf2, part);
		done += part;
	}
	have = wfs_hasher_final(&h);
	return !wfs_digest_equal(&have, &piece->digest);
}

/*
 * The new bytes may take the place of those that are lost only where it is certain which they
 * were: there is no other object of this digest.
 */
static int match_store(struct wfs_plan *p, struct wfs_plan_piece *piece)
{
	unsigned others = 0;

	if (piece->heals)
		piece->last_compared = -1;
	piece->heals = 0;
	for (;;) {
		struct wfs_content *other = NULL;
		struct wfs_object object;
		int ret = next_candidate(p->file->store, piece, &object, &other);

		if (ret <= 0)
			return ret;
		ret = is_equal(p, piece, other, 0);
		if (ret == 0 && others++ == 0) {
			int damaged = is_damaged(p, piece, other);

			piece->heals = damaged > 0 ? object.id : 0;
			ret = WFS_MIN(damaged, 0);
		} else {
			piece->heals = 0;
		}
		wfs_content_unref(other);
		if (ret < 0)
			return ret;
		if (ret) {
			piece->object = object.id;
			piece->data_file = object.data_file;
			piece->place = object.offset;
			return 0;
		}
		piece->last_compared = (int64_t)object.ordinal;
	}
}

/* Chains of new pieces by digest: heads[] has a power of two of entries. */
struct chains {
	size_t *heads;
	size_t mask;
};

static size_t *head_of(struct chains *chains, const struct wfs_digest *d)
{
	uint64_t bits;

	memcpy(&bits, d->bytes, sizeof(bits));
	return &chains->heads[(bits ^ bits >> 32) & chains->mask];
}

/* Two tensors of one file with the same bytes. */
static int match_own(struct wfs_plan *p, size_t i, struct chains *chains)
{
	struct wfs_plan_piece *piece = &p->pieces[i];
	size_t *head = head_of(chains, &piece->digest);

	for (size_t j = *head; j != WFS_PLAN_NONE; j = p->pieces[j].next) {
		const struct wfs_plan_piece *before = &p->pieces[j];
		int equal;

		if (before->length != piece->length ||
			!wfs_digest_equal(&before->digest, &piece->digest))
			continue;
		equal = is_equal(p, piece, p->content, before->offset);
		if (equal < 0)
			return equal;
		if (equal) {
			piece->same_as = j;
			return 0;
		}
	}
	piece->next = *head;
	*head = i;
	return 0;
}

static int make_chains(struct chains *chains, size_t n)
{
	size_t size = 16;

	while (size < 2 * n)
		size *= 2;
	chains->heads = reallocarray(NULL, size, sizeof(*chains->heads));
	if (!chains->heads)
		return -ENOMEM;
	for (size_t i = 0; i < size; i++)
		chains->heads[i] = WFS_PLAN_NONE;
	chains->mask = size - 1;
	return 0;
}

int wfs_plan_match(struct wfs_plan *p)
{
	struct chains chains;
	int ret = make_chains(&chains, p->n);

	for (size_t i = 0; i < p->n && ret == 0; i++) {
		struct wfs_plan_piece *piece = &p->pieces[i];

		piece->object = 0;
		piece->same_as = WFS_PLAN_NONE;
		ret = match_store(p, piece);
		if (ret == 0 && !piece->object)
			ret = match_own(p, i, &chains);
	}
	free(chains.heads);
	return ret;
}
