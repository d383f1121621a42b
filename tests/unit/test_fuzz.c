/*
 * The functions of tests/fuzz/ over what has made them fail once (tests/fuzz/regress/NAME/), over the
 * corpus, and over changes of both: a fuzzer's first seconds, without a fuzzer.
 *
 *     WEIGHTFS_FUZZ_ROUNDS   changes for each target (default 2000; of stores a twentieth)
 *     WEIGHTFS_FUZZ_SEED     of the changes (default 1)
 */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tests/fuzz/fuzz.h"
#include "tests/unit/support.h"

#define MAX_SIZE 4096

struct target {
	const char *name;
	void (*run)(const uint8_t *data, size_t size);
	const char *const *seeds;
	size_t n_seeds;
	unsigned per_round; /* rounds are divided by it */
};

struct seed {
	uint8_t *bytes;
	size_t size;
};

struct seeds {
	struct seed *list;
	size_t n;
};

static uint64_t state;

static uint64_t next(uint64_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (state >> 11) % below;
}

static void add_seed(struct seeds *s, void *bytes, size_t size)
{
	s->list = reallocarray(s->list, s->n + 1, sizeof(*s->list));
	assert_non_null(s->list);
	s->list[s->n++] = (struct seed){ bytes, size };
}

/* Every file of a directory; none where there is no directory. */
static void add_files(struct seeds *s, const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *e;

	while (d && (e = readdir(d))) {
		WFS_AUTO_FREE char *path = wfs_test_path(dir, "%s", e->d_name);
		size_t size;
		void *bytes;

		if (e->d_name[0] == '.')
			continue;
		bytes = wfs_test_read(path, &size);
		add_seed(s, bytes, size);
	}
	if (d)
		closedir(d);
}

static struct seeds find_seeds(const struct target *t)
{
	WFS_AUTO_FREE char *regress = wfs_test_path("tests/fuzz/regress", "%s", t->name);
	struct seeds s = { NULL, 0 };

	add_files(&s, regress);
	for (size_t i = 0; i < t->n_seeds; i++) {
		if (t->seeds[i][0] == '@')
			add_files(&s, t->seeds[i] + 1);
		else
			add_seed(&s, strdup(t->seeds[i]), strlen(t->seeds[i]));
	}
	return s;
}

static void change(uint8_t *buf, size_t *size)
{
	static const char *const pieces[] = { "{", "}", "[", "]", "\"", ",", ":", "9", "-1", "\\u0000", "\xff", "e308",
		"18446744073709551615", " ", "\n", "null", "../" };
	size_t at = next(*size + 1);
	const char *piece = pieces[next(WFS_ARRAY_SIZE(pieces))];
	size_t len = strlen(piece);

	if (next(3) == 0 && *size + len <= MAX_SIZE) {
		memmove(buf + at + len, buf + at, *size - at);
		memcpy(buf + at, piece, len);
		*size += len;
	} else if (next(4) == 0) {
		len = next(20);
		len = WFS_MIN(len, *size - at);
		memmove(buf + at, buf + at + len, *size - at - len);
		*size -= len;
	} else if (at < *size) {
		buf[at] = next(2) ? (uint8_t)next(256) : buf[at] ^ (uint8_t)(1 << next(8));
	}
}

static void run_changed(const struct target *t, const struct seeds *seeds)
{
	const char *rounds = getenv("WEIGHTFS_FUZZ_ROUNDS"), *seed = getenv("WEIGHTFS_FUZZ_SEED");
	unsigned long n = (rounds ? strtoul(rounds, NULL, 10) : 2000) / t->per_round;
	uint8_t *buf = malloc(MAX_SIZE);

	assert_non_null(buf);
	state = 88172645463325252 + (seed ? strtoull(seed, NULL, 10) : 1);
	for (unsigned long i = 0; i < n; i++) {
		const struct seed *from = &seeds->list[next(seeds->n)];
		size_t size = WFS_MIN(from->size, (size_t)MAX_SIZE);
		uint8_t *exact;

		memcpy(buf, from->bytes, size);
		for (uint64_t k = 0, changes = next(5) + 1; k < changes; k++)
			change(buf, &size);
		exact = malloc(size ? size : 1);
		memcpy(exact, buf, size);
		t->run(exact, size);
		free(exact);
	}
	free(buf);
}

static void run_target(const struct target *t)
{
	struct seeds seeds = find_seeds(t);

	assert_true(seeds.n > 0);
	for (size_t i = 0; i < seeds.n; i++)
		t->run(seeds.list[i].bytes, seeds.list[i].size);
	run_changed(t, &seeds);
	for (size_t i = 0; i < seeds.n; i++)
		free(seeds.list[i].bytes);
	free(seeds.list);
}

static const char *const safetensors_seeds[] = { "@tests/corpus/valid", "@tests/corpus/invalid" };
static const char *const npy_seeds[] = { "@tests/fuzz/seeds/npy" };
static const char *const index_seeds[] = { "@tests/fuzz/seeds/index" };
static const char *const json_seeds[] = { "@tests/fuzz/seeds/index", "[1, -2.5e10, \"a\\u00e9\\n\", {\"k\": [null, true]}]",
	"{\"t\": {\"dtype\": \"F32\", \"shape\": [2, 3], \"data_offsets\": [0, 24]}}", "1.7976931348623157e308" };
static const char *const name_seeds[] = { "model-00001-of-00003.safetensors", "model.fp16.safetensors", "1.5GiB", "500MB",
	"model.safetensors.index.fp16.json", "9223372036854775807", "0.1KB" };
static const char *const store_seeds[] = { "@tests/fuzz/seeds/store" };

static const struct target targets[] = {
	{ "safetensors", wfs_fuzz_safetensors, safetensors_seeds, WFS_ARRAY_SIZE(safetensors_seeds), 1 },
	{ "npy", wfs_fuzz_npy, npy_seeds, WFS_ARRAY_SIZE(npy_seeds), 1 },
	{ "index", wfs_fuzz_index, index_seeds, WFS_ARRAY_SIZE(index_seeds), 1 },
	{ "json", wfs_fuzz_json, json_seeds, WFS_ARRAY_SIZE(json_seeds), 1 },
	{ "names", wfs_fuzz_names, name_seeds, WFS_ARRAY_SIZE(name_seeds), 1 },
	{ "store", wfs_fuzz_store, store_seeds, WFS_ARRAY_SIZE(store_seeds), 20 },
};

#define TEST(number, name)                                                                         \
	static void test_##name(void **unused)                                                     \
	{                                                                                          \
		(void)unused;                                                                      \
		run_target(&targets[number]);                                                      \
	}

TEST(0, safetensors)
TEST(1, npy)
TEST(2, index)
TEST(3, json)
TEST(4, names)
TEST(5, store)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_safetensors),
		cmocka_unit_test(test_npy),
		cmocka_unit_test(test_index),
		cmocka_unit_test(test_json),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_store),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
