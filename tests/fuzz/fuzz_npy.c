/* A file, whole. Its data are brought into C order and compared with a slow way to do that. */
#include <errno.h>
#include <string.h>

#include "lib/npy.h"
#include "tests/fuzz/fuzz.h"

#define SMALL (1 << 16) /* bytes of data that are turned round */

struct file {
	const uint8_t *data;
	size_t size;
	uint8_t *out; /* SMALL bytes */
	size_t used;
};

static ssize_t read_at(void *ctx, void *buf, size_t len, uint64_t offset)
{
	const struct file *f = ctx;

	if (offset >= f->size)
		return 0;
	len = WFS_MIN(len, f->size - offset);
	memcpy(buf, f->data + offset, len);
	return (ssize_t)len;
}

static int append(void *ctx, const void *buf, size_t len)
{
	struct file *f = ctx;

	WFS_FUZZ_CHECK(len <= SMALL - f->used);
	memcpy(f->out + f->used, buf, len);
	f->used += len;
	return 0;
}

/* Where element i, counted in C order, stands in the file's order. */
static uint64_t place(const struct wfs_npy *npy, uint64_t i)
{
	uint64_t at = 0, step = 1, rest = i;

	if (!npy->fortran_order)
		return i;
	for (uint32_t d = 0; d < npy->ndim; d++)
		step *= npy->shape[d];
	for (uint32_t d = npy->ndim; d-- > 0;) {
		step /= npy->shape[d];
		at += rest % npy->shape[d] * step;
		rest /= npy->shape[d];
	}
	return at;
}

static void check_elements(const struct wfs_npy *npy, const struct file *f)
{
	unsigned bits = 0;
	uint64_t n = 1;
	size_t width, part;

	for (uint32_t d = 0; d < npy->ndim; d++)
		n *= npy->shape[d];
	WFS_FUZZ_CHECK(f->used == npy->data_len);
	if (n == 0 || npy->data_len == 0)
		return;
	bits = (unsigned)(npy->data_len * 8 / n);
	width = bits / 8;
	part = npy->dtype == WFS_DTYPE_C64 ? width / 2 : width;
	for (uint64_t i = 0; i < n; i++) {
		const uint8_t *from = f->data + npy->data_at + place(npy, i) * width;

		for (size_t b = 0; b < width; b++) {
			size_t turned = npy->big_endian ? b / part * part + part - 1 - b % part : b;

			WFS_FUZZ_CHECK(f->out[i * width + b] == from[turned]);
		}
	}
}

static void check_built(const struct wfs_npy *npy)
{
	WFS_AUTO_FREE uint8_t *head = NULL;
	struct wfs_npy again;
	size_t len = 0;

	WFS_FUZZ_CHECK(wfs_npy_build(npy->dtype, npy->shape, npy->ndim, &head, &len) == 0);
	WFS_FUZZ_CHECK(len % 64 == 0);
	WFS_FUZZ_CHECK(wfs_npy_parse(head, len + npy->data_len, &again, NULL) == 0);
	WFS_FUZZ_CHECK(again.dtype == npy->dtype && again.ndim == npy->ndim && !again.big_endian &&
		       !again.fortran_order && again.data_len == npy->data_len && again.data_at == len);
	WFS_FUZZ_CHECK(memcmp(again.shape, npy->shape, npy->ndim * sizeof(npy->shape[0])) == 0);
}

void wfs_fuzz_npy(const uint8_t *data, size_t size)
{
	uint64_t need = wfs_npy_need(data, size, size);
	WFS_AUTO_FREE uint8_t *copy = malloc(need ? need : 1);
	WFS_AUTO_FREE uint8_t *out = malloc(SMALL);
	struct file f = { .data = data, .size = size, .out = out };
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_npy npy;
	int ret;

	WFS_FUZZ_CHECK(need <= size && copy && out);
	if (need)
		memcpy(copy, data, need);
	ret = wfs_npy_parse(copy, size, &npy, &err);
	WFS_FUZZ_CHECK(ret == 0 || (ret == -EBADMSG && err.reason));
	if (ret)
		return;
	WFS_FUZZ_CHECK(npy.data_at + npy.data_len == size && wfs_npy_has_dtype(npy.dtype));
	check_built(&npy);
	if (npy.data_len > SMALL)
		return;
	WFS_FUZZ_CHECK(wfs_npy_to_c(&npy, read_at, append, &f) == 0);
	check_elements(&npy, &f);
	f.size -= npy.data_len > 0;
	f.used = 0;
	if (npy.data_len > 0)
		WFS_FUZZ_CHECK(wfs_npy_to_c(&npy, read_at, append, &f) == -EIO);
}
