// @huggingface/hub and @huggingface/gguf on files of the mount; prints what they say as JSON.
//
//     NODE_PATH=.../node_modules HF_HOME=DIR node hub.cjs snapshot REPO | upload REPO DIR | parse REPO | gguf FILE
//
// The hub is at HF_ENDPOINT, for HF_TOKEN.

const { pathToFileURL } = require("node:url");

const hub = require("@huggingface/hub");

const common = (repo) => ({ repo, hubUrl: process.env.HF_ENDPOINT, accessToken: process.env.HF_TOKEN });

const actions = {
	async snapshot(repo) {
		const path = await hub.snapshotDownload(common(repo));
		const cache = await hub.scanCacheDir();
		return { path, size: cache.size, files: cache.repos[0].filesCount, refs: cache.repos[0].revisions[0].refs,
			warnings: cache.warnings.map(String) };
	},

	// Whatever is in the directory.
	async upload(repo, directory) {
		await hub.createRepo(common(repo)).catch((error) => {
			if (error.statusCode !== 409) throw error;
		});
		const files = [{ path: ".", content: pathToFileURL(directory) }];
		return (await hub.uploadFiles({ ...common(repo), files, useXet: false })).commit.oid;
	},

	async parse(repo) {
		const { headers, parameterTotal } = await hub.parseSafetensorsMetadata({
			...common(repo), computeParametersCount: true });
		return { headers, parameterTotal };
	},

	async gguf(file) {
		const { gguf } = require("@huggingface/gguf");
		const { metadata, tensorInfos } = await gguf(file, { allowLocalFile: true });
		return { metadata, tensors: tensorInfos.map(({ name, shape, offset }) => [name, shape, offset]) };
	},
};

async function main([action, ...rest]) {
	console.debug = () => {};
	const value = await actions[action](...rest);
	console.log(JSON.stringify(value, (_, v) => (typeof v === "bigint" ? Number(v) : v)));
}

main(process.argv.slice(2));
