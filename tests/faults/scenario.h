/*
 * scenario.h - what is done to a store while calls fail, and how it begins.
 *
 * Each file of scenarios has a table of them, ended by one without a name.
 */
#ifndef WFS_TESTS_SCENARIO_H
#define WFS_TESTS_SCENARIO_H

#include "tests/faults/world.h"

struct scenario {
	const char *name;
	void (*set_up)(struct world *w); /* without faults; NULL: there is no store yet */
	void (*run)(struct world *w);
	/* Afterwards, without faults, in each process that looks at what was left: */
	void (*settle)(struct world *w); /* with the store closed; or NULL */
	void (*mend)(struct world *w);   /* with it open, before everything has to be right again; or NULL */
	bool crashes;                    /* the set-up ends without closing the store */
	bool opens;                      /* opening it is a part of it */
	uint64_t max_size;               /* of the store: lib/quota.h */
	const char *boot_id;             /* after the set-up the machine has started anew: lib/power.h */
};

extern const struct scenario scenarios_of_stores[], scenarios_of_backups[], scenarios_of_damage[],
	scenarios_of_fsck[], scenarios_of_disks[];

/* Stores that several begin with. */
void scenario_set_up_sealed(struct world *w);
void scenario_set_up_composed(struct world *w);
void scenario_set_up_model(struct world *w);

#endif
