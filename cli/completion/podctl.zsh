#compdef podctl
# zsh completion for podctl
_podctl() {
	local -a described
	local line value
	for line in "${(@f)$(_call_program podctl "${(q)words[1]}" __complete "${(@q)words[2,CURRENT]}" 2>/dev/null)}"; do
		value=${line%%$'\t'*}
		case $value in
		'') ;;
		:files) _files ;;
		:commands) _command_names -e ;;
		*) described+=("${value//:/\\:}:${line#*$'\t'}") ;;
		esac
	done
	(( ${#described} )) && _describe podctl described
}
if [ "$funcstack[1]" = _podctl ]; then
	_podctl "$@"
else
	compdef _podctl podctl
fi
