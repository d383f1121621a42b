// What Node's programs do to files: written, copied, moved and watched below a directory. Prints what it saw as JSON.
//
//     node files.cjs DIR      with a directory `model` in DIR

const fs = require("node:fs");
const path = require("node:path");
const { pipeline } = require("node:stream/promises");
const { createGzip } = require("node:zlib");

const { promises, constants } = fs;

// The names that a watcher of `directory` saw while `action` was done, once it has seen `last`.
async function watched(directory, last, action) {
	const seen = new Set();
	const control = new AbortController();
	const timer = setTimeout(() => control.abort(), 20000);
	const events = promises.watch(directory, { signal: control.signal });
	const reading = (async () => {
		for await (const { filename } of events) {
			seen.add(filename);
			if (filename === last) return;
		}
	})();
	await new Promise((resolve) => setTimeout(resolve, 50));
	await action();
	await reading;
	clearTimeout(timer);
	control.abort();
	return [...seen].sort();
}

async function main([root]) {
	const at = (...names) => path.join(root, ...names);
	await promises.cp(at("model"), at("copied"), { recursive: true, preserveTimestamps: true });
	await promises.mkdir(at("cloned"));
	for (const name of fs.readdirSync(at("model"))) {
		const source = at("model", name);
		if (fs.statSync(source).isDirectory()) continue;
		await promises.copyFile(source, at("cloned", name), constants.COPYFILE_FICLONE | constants.COPYFILE_EXCL);
		await pipeline(fs.createReadStream(source), createGzip(), fs.createWriteStream(at(`${name}.gz`)));
	}
	const handle = await promises.open(at("written.bin"), "w+", 0o640);
	await handle.writev([Buffer.alloc(5000, 1), Buffer.alloc(70000, 2)], 10);
	await handle.truncate(60000);
	await handle.appendFile("end");
	await handle.datasync();
	const half = Buffer.alloc(8);
	await handle.read(half, 0, 8, 5006);
	await handle.close();
	await promises.symlink("written.bin", at("link"));
	await promises.link(at("written.bin"), at("hard"));
	await promises.utimes(at("hard"), 1000, 2000.5);
	await promises.mkdir(at("deep", "er", "est"), { recursive: true });
	await promises.rename(at("deep", "er"), at("moved"));
	const exists = await promises.writeFile(at("written.bin"), "x", { flag: "wx" }).catch((error) => error.code);
	await promises.rm(at("deep"), { recursive: true });
	const seen = await watched(root, "watched-2", async () => {
		await promises.writeFile(at("watched-1.tmp"), "watched");
		await promises.rename(at("watched-1.tmp"), at("watched-1"));
		await promises.appendFile(at("watched-2"), "seen");
	});
	const { size, mode, nlink, mtimeMs } = await promises.stat(at("link"));
	const statfs = await promises.statfs(root);
	console.log(JSON.stringify({
		half: [...half], exists, seen, stat: [size, mode, nlink, mtimeMs], room: statfs.bavail > 0,
		real: path.relative(fs.realpathSync(root), fs.realpathSync(at("link"))),
		listed: fs.readdirSync(root, { recursive: true }).sort(),
	}));
}

main(process.argv.slice(2));
